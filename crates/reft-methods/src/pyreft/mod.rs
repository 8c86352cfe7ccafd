//! Directories that pyreft saves.

pub(crate) mod import;
pub(crate) mod pickle;
pub(crate) mod torch_pickle;
