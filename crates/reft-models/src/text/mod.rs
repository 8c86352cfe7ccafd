//! Text: tokenizers and chat templates.

pub(crate) mod decode_stream;
pub(crate) mod tokenizer;
pub(crate) mod tokenizer_class;
pub(crate) mod tokenizer_config;

pub(crate) mod chat_template;
pub(crate) mod chat_vars;
pub(crate) mod message;
pub(crate) mod python;
