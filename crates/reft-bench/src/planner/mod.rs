//! What a training run will take, before it is run: memory from shapes, time from a measured rate.

pub(crate) mod memory;
pub(crate) mod split;
pub(crate) mod step;
pub(crate) mod ways;
