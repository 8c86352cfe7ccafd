use serde_json::json;

use super::bert::{self, BERT, add_positions_and_types};
use super::{NOT_BY_LAYER, OF_ENCODERS, as_encoder};
use crate::transformer::families::family::Family;
use crate::{Component, Field, Fields, ModuleNames, TaskHeadForm};

/// DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT without types of tokens, under other names.
pub(crate) const DISTILBERT: Family = Family {
    model_type: "distilbert",
    fields: Fields {
        file: "`config.json` of DistilBERT, beside the fields of every model",
        groups: &[
            OF_ENCODERS,
            NOT_BY_LAYER,
            &[
                Field::applied(&["dim", "hidden_dim", "n_heads", "n_layers", "activation"])
                    .with_note("its names for sizes and for the function of the MLP"),
                Field::neutral(&["sinusoidal_pos_embds"], "the table stands among the weights"),
            ],
        ],
    },
    defaults: || json!({ "activation": "gelu", "max_position_embeddings": 512 }),
    options: |file, config| {
        as_encoder(file, config, &NAMES, None)?;
        add_positions_and_types(file, config, None)
    },
    ..BERT
};

/// DistilBERT's names of its modules.
const NAMES: ModuleNames = ModuleNames {
    prefix: Some("distilbert"),
    layers: "transformer.layer",
    projections: &[
        (Component::Query, "attention.q_lin"),
        (Component::Key, "attention.k_lin"),
        (Component::Value, "attention.v_lin"),
        (Component::Output, "attention.out_lin"),
        (Component::Up, "ffn.lin1"),
        (Component::Down, "ffn.lin2"),
    ],
    norms: Some(["sa_layer_norm", "output_layer_norm"]),
    task_head: TaskHeadForm::PreClassifier,
    ..bert::NAMES
};
