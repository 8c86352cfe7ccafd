//! Commands that generate: replies to prompts, a conversation, replies along a direction.

pub mod chat;
pub mod generate;
pub mod prompts;
pub mod sampling_args;
pub mod steer;
pub mod stream;
