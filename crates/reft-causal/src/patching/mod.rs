//! Finds hidden states that carry an answer: each hidden state of a base run is replaced by the source run's, and a metric of the answer is read.

pub(crate) mod metric;
pub(crate) mod patch;
