//! The comparison: every method on the same data, with the same budget and seeds.

mod cell;
mod config;
mod facts;
mod leakage;
mod machine;
mod plan;
mod prepared;
mod run;
mod sweep;
mod sweep_run;

pub use cell::{Cell, CellResult, TestResult};
pub(crate) use cell::{write_json, write_text};
pub use config::{
    Budget, CompareConfig, ConfigFile, DataConfig, MethodEntry, Precision, QuickConfig,
};
pub(crate) use facts::hex;
pub use facts::{DataFacts, PartFacts};
pub use leakage::Leakage;
pub(crate) use machine::peak_memory;
pub use machine::{Machine, resident_memory};
pub use plan::{Choice as ChosenRate, Plan, choose_rate};
pub use prepared::Prepared;
pub use run::{run_cell, run_comparison};
pub use sweep::{SweepAxis, SweepConfig, SweepPoint};
pub use sweep_run::{PointPlan, PreparedSweep, SweepPlan, run_sweep};
