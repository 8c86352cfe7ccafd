use serde_json::Value;

use crate::transformer::config::config_file::{ConfigFile, Resolved};
use crate::transformer::config::windows::Window;
use crate::{DecoderConfig, Fields, RopeOptions};

/// A family: its fields of `config.json`, their defaults, and the options of its blocks.
pub(crate) struct Family {
    /// Its name in `config.json`.
    pub(crate) model_type: &'static str,
    /// Fields that only this family has, or that have another meaning in it.
    pub(crate) fields: Fields,
    /// The values of transformers 5.24 for missing fields.
    pub(crate) defaults: fn() -> Value,
    /// Whether `attention_bias` is read.
    pub(crate) reads_attention_bias: bool,
    /// Whether `mlp_bias` is read.
    pub(crate) reads_mlp_bias: bool,
    /// Its layers with sliding windows.
    pub(crate) window: Window,
    /// Its RoPEs, given the head size.
    pub(crate) ropes: fn(&ConfigFile, i64) -> Resolved<Vec<RopeOptions>>,
    /// The differences of its blocks from Llama's.
    pub(crate) options: fn(&ConfigFile, &mut DecoderConfig) -> Resolved<()>,
}
