//! The fields of `config.json`, and the options of a model's blocks that follow from them.

pub(crate) mod config_file;
pub(crate) mod decoder_config;
pub(crate) mod module_names;
pub(crate) mod options;
pub(crate) mod rope_file;
pub(crate) mod text_part;
pub(crate) mod windows;
