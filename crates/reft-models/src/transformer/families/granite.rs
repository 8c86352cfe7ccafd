use serde_json::json;

use super::Family;
use crate::transformer::config::config_file::positive;
use crate::transformer::config::rope_file::{USUAL_ROPE, one_rope};
use crate::transformer::config::windows::Window;
use crate::{Field, Fields, Multipliers};

/// Granite 3 (2024): Llama with four multipliers.
pub(super) const GRANITE: Family = Family {
    model_type: "granite",
    fields: Fields {
        file: "`config.json` of Granite, beside the fields of every model",
        groups: &[&[Field::applied(&[
            "embedding_multiplier",
            "attention_multiplier",
            "residual_multiplier",
            "logits_scaling",
        ])]],
    },
    defaults: || json!({ "max_position_embeddings": 2048 }),
    reads_attention_bias: true,
    reads_mlp_bias: true,
    window: Window::Never,
    ropes: |file, head_dim| one_rope(file, head_dim, &USUAL_ROPE),
    options: |file, config| {
        let scale = positive("attention_multiplier", file.attention_multiplier, 1.0)?;
        config.attention.scale = Some(scale);
        config.multipliers = Multipliers {
            input: positive("embedding_multiplier", file.embedding_multiplier, 1.0)?,
            residual: positive("residual_multiplier", file.residual_multiplier, 1.0)?,
            logit_divisor: positive("logits_scaling", file.logits_scaling, 1.0)?,
            ..Multipliers::default()
        };
        Ok(())
    },
};
