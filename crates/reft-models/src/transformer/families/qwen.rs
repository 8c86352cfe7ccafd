use serde_json::json;

use super::{Family, NO_FIELDS};
use crate::QkNorm;
use crate::transformer::config::rope_file::{USUAL_ROPE, one_rope};
use crate::transformer::config::windows::Window;

/// Qwen 2 and 2.5 (2024, arXiv:2407.10671): Llama with biases of q, k and v, and optional windows in the upper layers.
pub(super) const QWEN2: Family = Family {
    model_type: "qwen2",
    fields: NO_FIELDS,
    defaults: || {
        json!({
            "max_position_embeddings": 32_768, "num_key_value_heads": 32, "sliding_window": 4096,
            "max_window_layers": 28,
        })
    },
    reads_attention_bias: false,
    reads_mlp_bias: false,
    window: Window::ByLayerIfUsed(|file, layer| {
        layer >= file.max_window_layers.unwrap_or(file.num_hidden_layers)
    }),
    ropes: |file, head_dim| one_rope(file, head_dim, &USUAL_ROPE),
    options: |_, config| {
        config.attention.qkv_bias = true;
        Ok(())
    },
};

/// Qwen 3 (2025, arXiv:2505.09388): queries and keys normalised per head, without biases.
pub(super) const QWEN3: Family = Family {
    model_type: "qwen3",
    defaults: || {
        json!({
            "max_position_embeddings": 32_768, "num_key_value_heads": 32, "head_dim": 128,
            "sliding_window": 4096, "max_window_layers": 28,
        })
    },
    reads_attention_bias: true,
    options: |_, config| {
        config.attention.qk_norm = Some(QkNorm::PerHead);
        Ok(())
    },
    ..QWEN2
};
