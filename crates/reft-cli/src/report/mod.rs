//! Commands that write a report: comparisons of methods, searches for a variable.

pub mod compare;
pub mod das;
