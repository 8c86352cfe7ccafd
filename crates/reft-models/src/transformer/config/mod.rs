//! The fields of `config.json`, and what they mean for the blocks of a model.

pub(crate) mod config_file;
pub(crate) mod decoder_config;
pub(crate) mod module_names;
pub(crate) mod options;
pub(crate) mod rope_file;
pub(crate) mod text_part;
pub(crate) mod windows;
