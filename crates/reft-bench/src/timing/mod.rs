//! How long a training step takes, method beside method, and how much memory.

mod case;
mod floor;
mod map_seconds;
mod measure;
mod report;

pub use case::{FLOOR, TimingCase};
pub use floor::FloorAdapter;
pub use measure::{GenerationSeconds, Measured, measure};
pub use report::{GenerationTiming, StepSeconds, TimingReport, TimingRow, TimingRun, run_timing};
