//! The comparison: every method on the same data, with the same budget and seeds.

mod budget;
mod config;
mod sweep;

mod facts;
mod leakage;
mod plan;

mod loaded_comparison;

mod cell;
mod run;
mod sweep_run;

pub use budget::Budget;
pub use cell::{Cell, CellResult, TestResult};
pub use config::{CompareConfig, ConfigFile, DataConfig, MethodEntry, QuickConfig};
pub use facts::{DataFacts, PartFacts};
pub use leakage::Leakage;
pub use loaded_comparison::{Comparison, LoadedComparison};
pub use plan::ComparisonPlan;
pub(crate) use plan::choose_rate;
pub use run::{run_cell, run_comparison};
pub use sweep::{PointPlan, SweepAxis, SweepConfig, SweepPlan, SweepPoint};
pub use sweep_run::{LoadedSweep, run_sweep};
