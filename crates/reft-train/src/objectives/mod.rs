//! What is learned: the trait that training and evaluation know, and the objectives.

pub(crate) mod next_token;
pub(crate) mod objective;
