//! Commands that generate: replies to prompts, a conversation.

pub mod chat;
pub mod generate;
pub mod prompts;
pub mod sampling_args;
pub mod stream;
