//! Commands that write a report: comparisons of methods, searches for a variable, pages of several training runs.

pub mod compare;
pub mod das;
pub mod runs;
