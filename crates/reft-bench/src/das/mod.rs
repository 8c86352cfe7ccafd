//! Alignment search on language models: tasks from files, a search over places and ranks with its controls, and the report.

mod cell;
mod equality;
mod group;
mod markdown;
mod options;
mod page;
mod pairs;
mod place;
mod position;
mod recipe;
mod report;
mod search;
mod searched;
mod subspace;
mod task;

pub use cell::{DasCell, MeasuredShare};
pub use equality::{EqualityNetwork, EqualityTask, EqualityVariable, NetworkConfig};
pub use options::{DasAlignment, DasOptions, Start};
pub use place::Part;
pub use position::PositionName;
pub use recipe::{DasRecipe, SearchDefaults};
pub use report::{DasReport, DasRow};
pub use search::DasSearch;
pub use searched::Searched;
pub use task::{DasTask, Mechanism, Numbers, Slot, Words};
