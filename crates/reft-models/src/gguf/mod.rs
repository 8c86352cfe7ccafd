//! GGUF files: the header, the tensors, and the model's configuration and tokenizer.

pub(crate) mod architecture;
pub(crate) mod config;
pub(crate) mod control_vector;
pub(crate) mod fields;
pub(crate) mod gguf_file;
pub(crate) mod header;
pub(crate) mod sentencepiece;
pub(crate) mod split;
pub(crate) mod tokenizer;
pub(crate) mod vocabulary;
pub(crate) mod writing;
