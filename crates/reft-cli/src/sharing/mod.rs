//! What leaves this machine or comes from others: one adapter of several, adapters of the hub, and the card that stands beside an adapter.

pub mod merge_adapters;
pub mod pull;
pub mod push;

mod leaks;
pub mod model_card;
