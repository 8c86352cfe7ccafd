//! What examples held out are measured by.

mod measures;
pub(crate) mod metric;
