//! The families of decoders, each a row of options over the parts that all share. A new one is a file here and an entry of [`FAMILIES`].

use serde_json::Value;

use crate::transformer::config::config_file::{ConfigFile, Resolved};
use crate::transformer::config::windows::Window;
use crate::{DecoderConfig, Field, Fields, RopeOptions};

mod gemma;
mod granite;
mod llama;
mod mistral;
mod olmo;
mod phi3;
mod qwen;
mod read_config;
mod smollm3;

/// A family: what it reads of `config.json`, what it takes where that says nothing, and what its blocks have.
pub(crate) struct Family {
    /// Its name in `config.json`.
    pub(crate) model_type: &'static str,
    /// Fields that are its own, or mean something else in it.
    pub(crate) fields: Fields,
    /// What transformers 5.24 takes for fields that are not there.
    pub(crate) defaults: fn() -> Value,
    /// Whether `attention_bias` is read.
    pub(crate) reads_attention_bias: bool,
    /// Whether `mlp_bias` is read.
    pub(crate) reads_mlp_bias: bool,
    /// Where it has sliding windows.
    pub(crate) window: Window,
    /// Its RoPEs, given the head size.
    pub(crate) ropes: fn(&ConfigFile, i64) -> Resolved<Vec<RopeOptions>>,
    /// What its blocks have otherwise than Llama's.
    pub(crate) options: fn(&ConfigFile, &mut DecoderConfig) -> Resolved<()>,
}

/// Every family.
pub(crate) const FAMILIES: [&Family; 12] = [
    &llama::LLAMA,
    &mistral::MISTRAL,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &smollm3::SMOLLM3,
    &granite::GRANITE,
    &olmo::OLMO2,
    &olmo::OLMO3,
    &phi3::PHI3,
    &mistral::MINISTRAL3,
];

/// Families that people ask for, and what of them is not computed.
pub(crate) const NOT_COMPUTED: [(&[&str], &str); 5] = [
    (
        &[
            "dbrx",
            "deepseek_v2",
            "deepseek_v3",
            "ernie4_5_moe",
            "flex_olmo",
            "glm4_moe",
            "gpt_oss",
            "granitemoe",
            "granitemoeshared",
            "llama4",
            "llama4_text",
            "minimax",
            "mistral4",
            "mixtral",
            "olmoe",
            "phimoe",
            "qwen2_moe",
            "qwen3_moe",
        ],
        ", a mixture of experts, which is not computed",
    ),
    (
        &[
            "gemma3n",
            "gemma4",
            "idefics3",
            "internvl",
            "llava",
            "llava_next",
            "mllama",
            "paligemma",
            "phi4_multimodal",
            "pixtral",
            "qwen2_5_omni",
            "qwen2_5_vl",
            "qwen2_audio",
            "qwen2_vl",
            "qwen3_vl",
            "smolvlm",
        ],
        ", a model that sees images or hears, whose decoder is not read",
    ),
    (
        &["granitemoehybrid", "lfm2", "olmo_hybrid", "qwen3_5", "qwen3_5_text", "qwen3_next"],
        ", whose convolutions or delta nets are not computed",
    ),
    (
        &["falcon_mamba", "jamba", "mamba", "mamba2", "nemotron_h", "recurrent_gemma", "rwkv"],
        ", whose recurrent layers are not computed",
    ),
    (
        &[
            "gemma",
            "phi",
            "olmo",
            "cohere",
            "cohere2",
            "glm",
            "glm4",
            "starcoder2",
            "stablelm",
            "gpt2",
        ],
        ", whose blocks are not among those computed",
    ),
];

/// A family without fields of its own.
const NO_FIELDS: Fields = Fields { file: "", groups: &[] };

/// What a family does that has nothing of its own.
fn as_llama(_: &ConfigFile, _: &mut DecoderConfig) -> Resolved<()> {
    Ok(())
}

/// A field that says that tokens see later ones.
const BOTH_WAYS: Field =
    Field::refused(&["use_bidirectional_attention"], "only decoders are computed");
