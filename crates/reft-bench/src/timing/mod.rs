//! How long a training step takes, method beside method, and how much memory.

pub(crate) mod case;
pub(crate) mod floor;
pub(crate) mod measure;
pub(crate) mod report;
