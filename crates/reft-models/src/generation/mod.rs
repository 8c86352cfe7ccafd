//! Replies, token by token.

pub(crate) mod engine;
pub(crate) mod generate;
pub(crate) mod sampling;
