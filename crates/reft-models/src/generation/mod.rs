//! Replies, token by token.

pub(crate) mod engine;
pub(crate) mod generate;
mod prefix_cache;
pub(crate) mod sampling;
