//! The files of adapters: PEFT's, our own, and pyreft's.

pub(crate) mod adapter_file;
pub(crate) mod control_vector;
pub(crate) mod exported;
pub(crate) mod head_file;
pub(crate) mod own_config;
pub(crate) mod peft_fields;
