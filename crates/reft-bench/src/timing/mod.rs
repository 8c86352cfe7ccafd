//! Measures the time and the memory of a training step, for several methods in turns.

pub(crate) mod case;
pub(crate) mod floor;
pub(crate) mod measure;
pub(crate) mod report;
