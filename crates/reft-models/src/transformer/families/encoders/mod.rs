//! The families of encoders, and their common options.

use crate::transformer::config::config_file::{ConfigFile, Resolved};
use crate::{
    DecoderConfig, EmbeddingOptions, Field, MlpKind, ModuleNames, NormKind, NormOptions, NormPlaces,
};

pub(crate) mod bert;
pub(crate) mod distilbert;
pub(crate) mod modernbert;
pub(crate) mod roberta;

/// Fields of every family of encoders.
const OF_ENCODERS: &[Field] = &[
    Field::neutral(
        &[
            "attention_dropout",
            "attention_probs_dropout_prob",
            "classifier_dropout",
            "dropout",
            "hidden_dropout_prob",
            "qa_dropout",
            "seq_classif_dropout",
        ],
        "the frozen model is run without dropout, as in evaluation",
    ),
    Field::neutral(
        &[
            "directionality",
            "gradient_checkpointing",
            "output_past",
            "pooler_fc_size",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
            "pooler_type",
            "tie_weights_",
            "tie_word_embeddings",
        ],
        "history, the pooler, or heads, which are not read",
    ),
    Field::only(
        &["position_embedding_type"],
        |kind| kind == "absolute",
        "\"absolute\": keys that know relative positions are not computed",
    ),
    Field::refused(
        &["is_decoder", "add_cross_attention"],
        "a decoder made of this family is not computed",
    ),
    Field::refused(
        &[
            "head_dim",
            "max_window_layers",
            "num_key_value_heads",
            "original_max_position_embeddings",
            "partial_rotary_factor",
            "rms_norm_eps",
            "rope_scaling",
            "rope_theta",
            "sliding_window",
            "use_sliding_window",
        ],
        "encoders have none; remove the field",
    ),
];

/// Fields of encoders with token types.
const WITH_TYPES: &[Field] = &[Field::applied(&["layer_norm_eps", "type_vocab_size"])];

/// Fields that are refused for encoders with equal layers and biases in all of them.
const NOT_BY_LAYER: &[Field] = &[Field::refused(
    &["attention_bias", "layer_types", "mlp_bias", "rope_parameters"],
    "this family has none; remove the field",
)];

/// The differences of encoders from decoders: attention in both directions, LayerNorm after each branch, biases, an MLP without a gate.
fn as_encoder(
    file: &ConfigFile,
    config: &mut DecoderConfig,
    names: &'static ModuleNames,
    eps: Option<f64>,
) -> Resolved<()> {
    let (d, heads) = (file.hidden_size, file.num_attention_heads);
    if d % heads != 0 {
        return Err(format!(
            "num_attention_heads is {heads}, expected a divisor of hidden_size {d}"
        ));
    }
    let eps = eps.unwrap_or(1e-12);
    if !(eps.is_finite() && eps >= 0.0) {
        return Err(format!("the ε of the norms is {eps}, expected a number that is not negative"));
    }
    config.names = names;
    config.model.is_causal = false;
    config.tie_word_embeddings = false;
    config.norm = NormOptions {
        kind: NormKind::Layer,
        places: NormPlaces::Stream,
        eps,
        bias: true,
        skips_first: false,
    };
    config.embeddings = EmbeddingOptions { is_normed: true, ..EmbeddingOptions::default() };
    config.attention.qkv_bias = true;
    config.attention.output_bias = true;
    config.attention.rope_of_layer = vec![None; file.num_hidden_layers];
    config.mlp.kind = MlpKind::Plain;
    config.mlp.bias = true;
    Ok(())
}
