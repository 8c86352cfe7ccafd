//! Directories that pyreft saves, read and written.

pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod pickle;
pub(crate) mod saved_form;
pub(crate) mod torch_pickle;
pub(crate) mod torch_save;
