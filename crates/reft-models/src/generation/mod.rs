//! Replies, token by token.

pub(crate) mod engine;
pub(crate) mod generate;
pub(crate) mod reply_text;
pub(crate) mod sampling;
