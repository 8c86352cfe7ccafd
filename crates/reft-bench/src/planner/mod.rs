//! Predicts a training run: memory from shapes, time from a measured rate.

pub(crate) mod memory;
pub(crate) mod split;
pub(crate) mod step;
pub(crate) mod ways;
