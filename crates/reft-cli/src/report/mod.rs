//! Commands that write a report: comparisons of methods, searches for a variable.

pub mod command_line;
pub mod compare;
pub mod das;
