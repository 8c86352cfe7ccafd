//! Files that leave this machine or come from others: one adapter of several, adapters of the hub, and an adapter's model card.

pub mod merge_adapters;
pub mod pull;
pub mod push;

mod leaks;
pub mod model_card;
