//! Which hidden states carry an answer: a source run's are put into a base run one at a time, and a metric of the answer is read.

pub(crate) mod metric;
pub(crate) mod patch;
