//! Commands that write a report: comparisons of methods, searches for a variable, training runs side by side.

pub mod compare;
pub mod das;
pub mod runs;
