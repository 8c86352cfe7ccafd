//! The metrics of held-out examples.

mod measures;
pub(crate) mod metric;
