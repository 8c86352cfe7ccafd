//! The Hugging Face hub: models and adapters by name, from its local cache or downloaded into it, and publishing of adapters.

mod client;
pub(crate) mod names;
pub(crate) mod push;

pub(crate) use names::is_hub_name;
