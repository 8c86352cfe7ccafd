//! The transformer: blocks of attention and MLP over a residual stream. Decoders and encoders are the same blocks with other options.

pub(crate) mod attention;
pub(crate) mod attention_mask;
pub(crate) mod config;
pub(crate) mod decoder;
pub(crate) mod decoder_block;
pub(crate) mod embeddings;
pub(crate) mod families;
pub(crate) mod forward;
pub(crate) mod mlp;
pub(crate) mod norm;
pub(crate) mod pass;
pub(crate) mod rope;
pub(crate) mod stored;
