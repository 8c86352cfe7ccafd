use serde_json::json;

use super::Family;
use crate::transformer::config::rope_file::{RopeRules, USUAL_ROPE, one_rope};
use crate::transformer::config::windows::Window;
use crate::{Field, Fields, MlpKind};

/// Phi-3, Phi-3.5 and Phi-4-mini (2024, arXiv:2404.14219): fused projections, RoPE on a part of each head, LongRoPE.
pub(super) const PHI3: Family = Family {
    model_type: "phi3",
    fields: Fields {
        file: "`config.json` of Phi-3, beside the fields of every model",
        groups: &[&[
            Field::applied(&["partial_rotary_factor"])
                .with_note("here or among the parameters of RoPE"),
            Field::neutral(
                &["full_attn_mod", "interpolate_factor"],
                "transformers does not read them",
            ),
            Field::only(
                &["embd_pdrop", "resid_pdrop"],
                |dropout| dropout.as_f64() == Some(0.0),
                "0: the model is frozen",
            ),
        ]],
    },
    defaults: || json!({ "max_position_embeddings": 4096, "rms_norm_eps": 1e-5 }),
    reads_attention_bias: false,
    reads_mlp_bias: false,
    window: Window::Everywhere,
    ropes: |file, head_dim| {
        let renamed = &[("su", "longrope"), ("yarn", "longrope")];
        let original = Some(4096.0);
        let rules = RopeRules { is_partial: true, renamed, original, ..USUAL_ROPE };
        one_rope(file, head_dim, &rules)
    },
    options: |_, config| {
        config.attention.is_fused = true;
        config.mlp.kind = MlpKind::FusedGate;
        Ok(())
    },
};
