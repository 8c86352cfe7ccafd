//! Representation fine-tuning: edits of hidden states at a few sites and prompt positions.

pub(crate) mod adapter;
pub(crate) mod config;
pub(crate) mod declaration;
pub(crate) mod joining;
