//! Text: tokenizers and chat templates.

pub(crate) mod chat_template;
pub(crate) mod decode_stream;
pub(crate) mod tokenizer;
pub(crate) mod tokenizer_config;
