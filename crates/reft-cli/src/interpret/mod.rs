//! Views inside a model: its tokens, its hidden states and their next tokens, where heads look, and which states carry an answer.

pub mod attention;
pub mod lens;
pub mod patch;
pub mod prompt_tokens;
pub mod states;
pub mod tokenize;
