//! Frozen work that is done once: what lies before the lowest point a method touches is computed once and kept.

mod frozen_row;
mod frozen_store;
mod groups;
mod spill_file;

pub(crate) use frozen_row::{FrozenPast, FrozenRow, side_by_side};
pub use frozen_store::{FrozenStore, ReuseConfig};
