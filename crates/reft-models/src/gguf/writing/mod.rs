//! GGUF files of models, as llama.cpp's converter writes them.

pub(crate) mod file;
pub(crate) mod kind;
pub(crate) mod model_keys;
pub(crate) mod tokenizer_keys;
