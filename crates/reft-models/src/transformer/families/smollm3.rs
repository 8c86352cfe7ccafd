use serde_json::json;

use super::{Family, as_llama};
use crate::transformer::config::config_file::ConfigFile;
use crate::transformer::config::rope_file::{RopeRules, USUAL_ROPE, one_rope};
use crate::transformer::config::windows::Window;
use crate::{Field, Fields};

/// SmolLM3 (2025): Llama with some layers without positions.
pub(super) const SMOLLM3: Family = Family {
    model_type: "smollm3",
    fields: Fields {
        file: "`config.json` of SmolLM3, beside the fields of every model",
        groups: &[&[Field::applied(&["no_rope_layers", "no_rope_layer_interval"])
            .with_note("0 in the list: a layer without RoPE; else every so many-th")]],
    },
    defaults: || {
        json!({
            "max_position_embeddings": 32_768, "num_key_value_heads": 4,
            "tie_word_embeddings": true, "no_rope_layer_interval": 4,
        })
    },
    reads_attention_bias: true,
    reads_mlp_bias: true,
    window: Window::ByLayerIfUsed(|file, layer| !has_rope(file, layer)),
    ropes: |file, head_dim| one_rope(file, head_dim, &RopeRules { theta: 2e6, ..USUAL_ROPE }),
    options: |file, config| {
        as_llama(file, config)?;
        let (layers, listed) = (file.num_hidden_layers, file.no_rope_layers.as_ref());
        if let Some(listed) = listed.filter(|listed| listed.len() < layers) {
            let found = listed.len();
            return Err(format!("no_rope_layers lists {found} layers, expected {layers}"));
        }
        let rope = |layer| has_rope(file, layer).then_some(0);
        config.attention.rope_of_layer = (0..layers).map(rope).collect();
        Ok(())
    },
};

fn has_rope(file: &ConfigFile, layer: usize) -> bool {
    match &file.no_rope_layers {
        Some(listed) => listed.get(layer).is_some_and(|has_rope| *has_rope != 0),
        None => !(layer + 1).is_multiple_of(file.no_rope_layer_interval.unwrap_or(4).max(1)),
    }
}
