//! Finds hidden states that carry an answer: each one in a base run is replaced by that of a source run, and a metric of the answer is read.

pub(crate) mod metric;
pub(crate) mod patch;
