//! What leaves this machine or comes from others: one adapter of several, and the card that stands beside an adapter.

pub mod merge_adapters;
pub mod model_card;
