//! The thread that owns all tensors: the engine, and the adapters that are loaded.

pub(crate) mod counts;
pub(crate) mod generation;
pub(crate) mod job;
pub(crate) mod loaded;
pub(crate) mod run;
