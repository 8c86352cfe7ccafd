//! Sharing of adapters: merging several into one, pull and push with the hub, and model cards.

pub mod merge_adapters;
pub mod pull;
pub mod push;

mod leaks;
pub mod model_card;
