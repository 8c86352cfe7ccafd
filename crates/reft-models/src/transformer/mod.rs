//! The decoder: blocks of attention and MLP over a residual stream.

pub(crate) mod attention;
pub(crate) mod attention_mask;
pub(crate) mod config;
pub(crate) mod decoder;
pub(crate) mod decoder_block;
pub(crate) mod families;
pub(crate) mod forward;
pub(crate) mod mlp;
pub(crate) mod pass;
pub(crate) mod rms_norm;
pub(crate) mod rope;
