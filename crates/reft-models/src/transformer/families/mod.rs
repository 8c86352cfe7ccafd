//! The families of decoders and encoders, each a set of options of the shared parts. A new family is a file here, or
//! in `encoders`, and an entry of [`FAMILIES`].

use crate::transformer::config::config_file::{ConfigFile, Resolved};
use crate::{DecoderConfig, Field, Fields};

pub(crate) use family::Family;

mod encoders;
mod family;
mod gemma;
mod granite;
mod llama;
mod mistral;
mod olmo;
mod phi3;
mod qwen;
mod read_config;
mod smollm3;

/// Every family.
pub(crate) const FAMILIES: &[&Family] = &[
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
    &encoders::bert::BERT,
    &encoders::roberta::ROBERTA,
    &encoders::roberta::XLM_ROBERTA,
    &encoders::roberta::CAMEMBERT,
    &encoders::modernbert::MODERNBERT,
    &encoders::distilbert::DISTILBERT,
];

/// Common families that are not supported, each with the missing part.
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

/// A family without additional fields.
const NO_FIELDS: Fields = Fields { file: "", groups: &[] };

/// The options of a family without additional options.
fn as_llama(_: &ConfigFile, _: &mut DecoderConfig) -> Resolved<()> {
    Ok(())
}

/// The field for attention in both directions.
const BOTH_WAYS: Field =
    Field::refused(&["use_bidirectional_attention"], "only decoders are computed");
