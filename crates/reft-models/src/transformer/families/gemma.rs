use serde_json::json;

use super::{BOTH_WAYS, Family};
use crate::transformer::config::config_file::{ConfigFile, Resolved, activation, positive};
use crate::transformer::config::rope_file::{USUAL_ROPE, one_rope, rope_by_layer_type};
use crate::transformer::config::windows::Window;
use crate::{DecoderConfig, Field, Fields, NormKind, NormPlaces, QkNorm};

/// The options that both families share.
const OWN: [Field; 4] = [
    Field::applied(&["hidden_activation"])
        .with_note("silu, swish, gelu, gelu_pytorch_tanh and gelu_new"),
    Field::neutral(&["hidden_act"], "`hidden_activation` is read"),
    Field::neutral(&["cache_implementation"], "of generation in transformers"),
    BOTH_WAYS,
];

/// Gemma 2 (2024, arXiv:2408.00118): four norms with 1 + w, scaled embeddings, soft caps of scores and logits, a window in every other
/// layer.
pub(super) const GEMMA2: Family = Family {
    model_type: "gemma2",
    fields: Fields {
        file: "`config.json` of Gemma 2, beside the fields of every model",
        groups: &[
            &OWN,
            &[Field::applied(&[
                "query_pre_attn_scalar",
                "attn_logit_softcapping",
                "final_logit_softcapping",
            ])],
        ],
    },
    defaults: || {
        json!({
            "max_position_embeddings": 8192, "num_key_value_heads": 4, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": true,
            "query_pre_attn_scalar": 256, "sliding_window": 4096,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        })
    },
    reads_attention_bias: true,
    reads_mlp_bias: false,
    window: Window::ByLayer(|_, layer| layer % 2 == 0),
    ropes: |file, head_dim| one_rope(file, head_dim, &USUAL_ROPE),
    options: |file, config| {
        of_both(file, config)?;
        config.attention.soft_cap = cap("attn_logit_softcapping", file.attn_logit_softcapping)?;
        Ok(())
    },
};

/// The decoder of Gemma 3 (2025, arXiv:2503.19786): a window in five of six layers, with their own θ; queries and keys normalised.
pub(super) const GEMMA3: Family = Family {
    model_type: "gemma3_text",
    fields: Fields {
        file: "`config.json` of Gemma 3 (gemma3_text), beside the fields of every model",
        groups: &[
            &OWN,
            &[
                Field::applied(&["query_pre_attn_scalar", "final_logit_softcapping"]),
                Field::neutral(
                    &["attn_logit_softcapping"],
                    "transformers does not cap the scores of Gemma 3",
                ),
                Field::applied(&["sliding_window_pattern"]).with_note(
                    "every so many-th layer has no window; `layer_types` comes before it",
                ),
                Field::neutral(&["_sliding_window_pattern"], "`layer_types` says it"),
                Field::applied(&["rope_local_base_freq"])
                    .with_note("θ of layers with a window; `rope_theta` is the others'"),
            ],
        ],
    },
    defaults: || {
        json!({
            "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216,
            "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
            "head_dim": 256, "max_position_embeddings": 131_072,
            "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": true,
            "query_pre_attn_scalar": 256, "sliding_window": 4096, "sliding_window_pattern": 6,
        })
    },
    window: Window::ByLayer(slides),
    ropes: |file, head_dim| {
        let thetas = [(file.rope_theta, 1e6), (file.rope_local_base_freq, 1e4)];
        rope_by_layer_type(file, head_dim, thetas.map(|(own, usual)| own.unwrap_or(usual)))
    },
    options: |file, config| {
        of_both(file, config)?;
        config.attention.qk_norm = Some(QkNorm::PerHead);
        let rope = |layer| Some(usize::from(file.slides(layer, slides)));
        config.attention.rope_of_layer = (0..file.num_hidden_layers).map(rope).collect();
        Ok(())
    },
    ..GEMMA2
};

/// Whether a layer of Gemma 3 has a window, if there is no `layer_types`.
fn slides(file: &ConfigFile, layer: usize) -> bool {
    !(layer + 1).is_multiple_of(file.sliding_window_pattern.unwrap_or(6).max(1))
}

fn of_both(file: &ConfigFile, config: &mut DecoderConfig) -> Resolved<()> {
    config.norm.kind = NormKind::RmsPlusOne;
    config.norm.places = NormPlaces::Both;
    config.mlp.activation = activation("hidden_activation", file.hidden_activation.as_deref())?;
    let scalar = positive("query_pre_attn_scalar", file.query_pre_attn_scalar, 256.0)?;
    config.attention.scale = Some(scalar.powf(-0.5));
    config.multipliers.embedding = (file.hidden_size as f64).sqrt();
    config.multipliers.logit_soft_cap =
        cap("final_logit_softcapping", file.final_logit_softcapping)?;
    Ok(())
}

fn cap(field: &str, cap: Option<f64>) -> Resolved<Option<f64>> {
    cap.map(|cap| positive(field, Some(cap), cap)).transpose()
}
