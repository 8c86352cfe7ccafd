use serde_json::json;

use super::{Family, NO_FIELDS, as_llama};
use crate::transformer::config::config_file::Resolved;
use crate::transformer::config::rope_file::{
    RopeFields, RopeRules, USUAL_ROPE, one_rope, rope_fields,
};
use crate::transformer::config::windows::Window;
use crate::{DecoderConfig, Field, Fields, QueryScaling, RopeScaling};

/// Mistral (Jiang et al. 2023, arXiv:2310.06825): Llama with a window.
pub(super) const MISTRAL: Family = Family {
    model_type: "mistral",
    fields: NO_FIELDS,
    defaults: || {
        json!({
            "max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096,
        })
    },
    reads_attention_bias: false,
    reads_mlp_bias: false,
    window: Window::Everywhere,
    ropes: |file, head_dim| one_rope(file, head_dim, &USUAL_ROPE),
    options: as_llama,
};

/// Ministral 3 (2025): Mistral with YaRN and queries that grow with their position.
pub(super) const MINISTRAL3: Family = Family {
    model_type: "ministral3",
    fields: Fields {
        file: "`config.json` of Ministral 3, beside the fields of every model",
        groups: &[&[Field::applied(&["rope_scaling", "rope_parameters"])
            .with_note("`llama_4_scaling_beta` among the parameters scales the queries")]],
    },
    defaults: || {
        json!({
            "max_position_embeddings": 262_144, "num_key_value_heads": 8, "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0,
                "original_max_position_embeddings": 16384, "beta_fast": 32.0, "beta_slow": 1.0,
                "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
            },
        })
    },
    ropes: |file, head_dim| {
        let own = &[
            "llama_4_scaling_beta",
            "max_position_embeddings",
            "original_max_position_embeddings",
        ];
        one_rope(file, head_dim, &RopeRules { own, ..USUAL_ROPE })
    },
    options: |file, config| {
        config.attention.query_scaling = Some(query_scaling(&rope_fields(file), config)?);
        Ok(())
    },
    ..MISTRAL
};

/// The growth of queries with their position, from the parameters of RoPE.
fn query_scaling(rope: &RopeFields, config: &DecoderConfig) -> Resolved<QueryScaling> {
    let number = |name: &str| {
        let value = rope.get(name).and_then(serde_json::Value::as_f64);
        let value = value.filter(|x| x.is_finite() && *x >= 0.0);
        value.ok_or_else(|| format!("rope: {name} is missing, expected a number"))
    };
    let original = match config.attention.ropes[0].scaling {
        RopeScaling::Yarn { original_max_position_embeddings: original, .. } => original,
        _ => number("original_max_position_embeddings")?.max(1.0),
    };
    let beta = number("llama_4_scaling_beta")?;
    Ok(QueryScaling { beta, original_max_position_embeddings: original })
}
