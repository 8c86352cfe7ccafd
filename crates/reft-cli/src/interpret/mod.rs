//! What goes on inside a model: its tokens, its hidden states, what they would say, where heads look, and which of them carry an answer.

pub mod attention;
pub mod lens;
pub mod patch;
pub mod prompt_tokens;
pub mod states;
pub mod tokenize;
