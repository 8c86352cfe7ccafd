use serde_json::json;

use super::{Family, NO_FIELDS};
use crate::transformer::config::config_file::ConfigFile;
use crate::transformer::config::rope_file::{USUAL_ROPE, one_rope, rope_by_layer_type};
use crate::transformer::config::windows::Window;
use crate::{DecoderConfig, Field, Fields, NormPlaces, QkNorm};

/// OLMo 2 (2024, arXiv:2501.00656): norms after the branches; queries and keys normalised over all heads.
pub(super) const OLMO2: Family = Family {
    model_type: "olmo2",
    fields: NO_FIELDS,
    defaults: || json!({ "max_position_embeddings": 2048, "rms_norm_eps": 1e-5 }),
    reads_attention_bias: true,
    reads_mlp_bias: false,
    window: Window::Never,
    ropes: |file, head_dim| one_rope(file, head_dim, &USUAL_ROPE),
    options: |_, config| {
        of_both(config);
        Ok(())
    },
};

/// OLMo 3 (2025): OLMo 2 with a window in three of four layers.
pub(super) const OLMO3: Family = Family {
    model_type: "olmo3",
    fields: Fields {
        file: "`config.json` of OLMo 3, beside the fields of every model",
        groups: &[&[Field::applied(&["rope_theta", "rope_scaling"]).with_note(
            "of the layers without a window; the others turn by θ 500,000, as in transformers, unless `rope_parameters` holds both",
        )]],
    },
    defaults: || {
        json!({ "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "sliding_window": 4096 })
    },
    window: Window::ByLayer(slides),
    ropes: |file, head_dim| {
        rope_by_layer_type(file, head_dim, [file.rope_theta.unwrap_or(5e5), 5e5])
    },
    options: |file, config| {
        of_both(config);
        let rope = |layer| Some(usize::from(file.slides(layer, slides)));
        config.attention.rope_of_layer = (0..file.num_hidden_layers).map(rope).collect();
        Ok(())
    },
    ..OLMO2
};

/// Whether a layer of OLMo 3 has a window, if there is no `layer_types`.
fn slides(_: &ConfigFile, layer: usize) -> bool {
    !(layer + 1).is_multiple_of(4)
}

fn of_both(config: &mut DecoderConfig) {
    config.norm.places = NormPlaces::Post;
    config.attention.qk_norm = Some(QkNorm::FullWidth);
}
