//! The adapters of methods on a frozen model, alone and in stacks.

pub(crate) mod adapter;
pub(crate) mod base_model;
pub(crate) mod by_row;
mod edit_sizes;
pub(crate) mod low_rank_rows;
pub(crate) mod owned_hooks;
pub(crate) mod stack;
pub(crate) mod token_edits;
pub(crate) mod trained_text;
