use serde_json::json;

use super::{OF_ENCODERS, as_encoder};
use crate::transformer::config::config_file::{ConfigFile, activation};
use crate::transformer::config::rope_file::rope_by_layer_type;
use crate::transformer::config::windows::Window;
use crate::transformer::families::family::Family;
use crate::{Component, Field, Fields, MlpKind, ModuleNames, NormPlaces, TaskHeadForm};

/// ModernBERT (Warner et al. 2024, arXiv:2412.13663): norms before the branches, RoPE, a window on both sides in two of three layers.
pub(crate) const MODERNBERT: Family = Family {
    model_type: "modernbert",
    fields: Fields {
        file: "`config.json` of ModernBERT, beside the fields of every model",
        groups: &[
            &[
                Field::applied(&["hidden_activation"])
                    .with_note("silu, swish, gelu, gelu_pytorch_tanh and gelu_new"),
                Field::applied(&["norm_eps", "norm_bias", "attention_bias", "mlp_bias"]),
                Field::applied(&["local_attention"])
                    .with_note("half of it on either side of a token"),
                Field::applied(&["global_attn_every_n_layers"]).with_note(
                    "every so many-th layer has no window; `layer_types` comes before it",
                ),
                Field::applied(&["global_rope_theta", "local_rope_theta", "rope_parameters"])
                    .with_note("θ of layers without and with a window"),
                Field::neutral(
                    &[
                        "classifier_activation",
                        "classifier_bias",
                        "classifier_pooling",
                        "cls_token_id",
                        "decoder_bias",
                        "deterministic_flash_attn",
                        "embedding_dropout",
                        "hidden_act",
                        "initializer_cutoff_factor",
                        "layer_norm_eps",
                        "mlp_dropout",
                        "reference_compile",
                        "repad_logits_with_grad",
                        "sparse_pred_ignore_index",
                        "sparse_prediction",
                    ],
                    "heads, dropout, or fields that transformers does not read either",
                ),
            ],
            OF_ENCODERS,
        ],
    },
    defaults: || {
        json!({
            "hidden_activation": "gelu", "max_position_embeddings": 8192, "local_attention": 128,
            "global_attn_every_n_layers": 3,
        })
    },
    reads_attention_bias: true,
    reads_mlp_bias: true,
    window: Window::OnBothSides(slides),
    ropes: |file, head_dim| {
        let thetas = [(file.global_rope_theta, 160_000.0), (file.local_rope_theta, 10_000.0)];
        rope_by_layer_type(file, head_dim, thetas.map(|(own, usual)| own.unwrap_or(usual)))
    },
    options: |file, config| {
        let biases = (config.attention.qkv_bias, config.mlp.bias);
        as_encoder(file, config, &NAMES, Some(file.norm_eps.unwrap_or(1e-5)))?;
        config.norm.places = NormPlaces::Pre;
        config.norm.bias = file.norm_bias.unwrap_or(false);
        config.norm.skips_first = true;
        (config.attention.qkv_bias, config.mlp.bias) = biases;
        config.attention.output_bias = config.attention.qkv_bias;
        config.attention.is_fused = true;
        let rope = |layer| Some(usize::from(file.slides(layer, slides)));
        config.attention.rope_of_layer = (0..file.num_hidden_layers).map(rope).collect();
        config.mlp.kind = MlpKind::FusedGate;
        config.mlp.activation = activation("hidden_activation", file.hidden_activation.as_deref())?;
        Ok(())
    },
};

/// Whether a layer has a window, if there is no `layer_types`.
fn slides(file: &ConfigFile, layer: usize) -> bool {
    !layer.is_multiple_of(file.global_attn_every_n_layers.unwrap_or(3).max(1))
}

/// ModernBERT's names of its modules.
const NAMES: ModuleNames = ModuleNames {
    prefix: Some("model"),
    embeddings: "embeddings.tok_embeddings",
    positions: "",
    token_types: "",
    embedding_norm: "embeddings.norm",
    layers: "layers",
    projections: &[
        (Component::QueryKeyValue, "attn.Wqkv"),
        (Component::Output, "attn.Wo"),
        (Component::GateUp, "mlp.Wi"),
        (Component::Down, "mlp.Wo"),
    ],
    norms: Some(["attn_norm", "mlp_norm"]),
    final_norm: Some("final_norm"),
    head: None,
    task_head: TaskHeadForm::Other,
};
