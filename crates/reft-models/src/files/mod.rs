//! Files and directories: found, read, and written completely or not at all.

pub(crate) mod atomic_file;
pub(crate) mod claim;
pub(crate) mod directory_lock;
pub(crate) mod fields;
pub(crate) mod model_dir;
pub(crate) mod reason;
pub(crate) mod safetensors_file;
pub(crate) mod text_file;
pub(crate) mod weights_digest;
