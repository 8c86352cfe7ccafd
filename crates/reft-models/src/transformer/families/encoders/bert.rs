use serde_json::json;

use super::{NOT_BY_LAYER, OF_ENCODERS, WITH_TYPES, as_encoder};
use crate::transformer::config::config_file::{ConfigFile, Resolved};
use crate::transformer::config::windows::Window;
use crate::transformer::families::family::Family;
use crate::{
    Component, DecoderConfig, EmbeddingOptions, Fields, LearnedPositions, ModuleNames, TaskHeadForm,
};

/// BERT and its distilled kin, such as MiniLM (Devlin et al. 2018, arXiv:1810.04805).
pub(crate) const BERT: Family = Family {
    model_type: "bert",
    fields: Fields {
        file: "`config.json` of BERT, beside the fields of every model",
        groups: &[OF_ENCODERS, WITH_TYPES, NOT_BY_LAYER],
    },
    defaults: || {
        json!({
            "hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
            "type_vocab_size": 2,
        })
    },
    reads_attention_bias: false,
    reads_mlp_bias: false,
    window: Window::Never,
    ropes: |_, _| Ok(Vec::new()),
    options: |file, config| {
        as_encoder(file, config, &NAMES, file.layer_norm_eps)?;
        add_positions_and_types(file, config, None)
    },
};

/// Adds position embeddings and token types. Positions begin at the first row of their table, or at the row after an uncounted token's row.
pub(super) fn add_positions_and_types(
    file: &ConfigFile,
    config: &mut DecoderConfig,
    uncounted: Option<i64>,
) -> Resolved<()> {
    let rows = file.max_position_embeddings;
    let first = uncounted.map_or(0, |token| token + 1);
    if !(first + 1..=1 << 24).contains(&rows) {
        let least = first + 1;
        return Err(format!("max_position_embeddings is {rows}, expected a size from {least} on"));
    }
    let token_types = file.type_vocab_size.unwrap_or(0);
    if !(0..=1 << 16).contains(&token_types) {
        return Err(format!("type_vocab_size is {token_types}, expected a size up to 65536"));
    }
    let positions = LearnedPositions { rows, first, uncounted };
    config.model.max_position_embeddings = positions.context();
    config.embeddings =
        EmbeddingOptions { positions: Some(positions), token_types, ..config.embeddings };
    Ok(())
}

/// BERT's names of its modules.
pub(super) const NAMES: ModuleNames = ModuleNames {
    prefix: Some("bert"),
    embeddings: "embeddings.word_embeddings",
    positions: "embeddings.position_embeddings",
    token_types: "embeddings.token_type_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    layers: "encoder.layer",
    projections: &[
        (Component::Query, "attention.self.query"),
        (Component::Key, "attention.self.key"),
        (Component::Value, "attention.self.value"),
        (Component::Output, "attention.output.dense"),
        (Component::Up, "intermediate.dense"),
        (Component::Down, "output.dense"),
    ],
    norms: Some(["attention.output.LayerNorm", "output.LayerNorm"]),
    final_norm: None,
    head: None,
    task_head: TaskHeadForm::Pooled,
};
