//! Alignment search on language models: tasks from files, a search over places and ranks with its controls, and the report.

mod cell;
mod markdown;
mod page;
mod pairs;
mod position;
mod report;
mod search;
mod subspace;
mod task;

pub use cell::{DasCell, MeasuredShare};
pub use position::PositionName;
pub use report::{DasReport, DasRow};
pub use search::{DasOptions, DasSearch, Start};
pub use task::{DasTask, Mechanism, Numbers, Slot, Words};
