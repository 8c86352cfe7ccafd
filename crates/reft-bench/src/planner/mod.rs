//! Predicts the cost of a training run: memory from shapes, and time from a measured rate.

pub(crate) mod memory;
pub(crate) mod split;
pub(crate) mod step;
pub(crate) mod ways;
