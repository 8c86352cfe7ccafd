//! Replies, token by token.

pub(crate) mod engine;
pub(crate) mod generate;
mod prefix_cache;
pub(crate) mod reply_text;
pub(crate) mod sampling;
