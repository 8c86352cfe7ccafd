//! Hugging Face's `config.json`. Every field is applied, known to change no number, or refused by its name.

use serde::Deserialize;

use crate::transformer::config::rope_file::RopeFields;
use crate::{Field, Fields, MlpActivation};

pub(crate) type Resolved<T> = std::result::Result<T, String>;

/// Fields that transformers may write into every `config.json`, and that change no number.
pub const TRANSFORMERS_FIELDS: &[Field] = &[Field::neutral(
    &[
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_llama_config",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_labels",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "typical_p",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    ],
    "history, tokens, generation, or fields for training from nothing",
)];

/// The fields of `config.json` that many families have, as transformers 5.24 has them.
pub(crate) const CONFIG: Fields = Fields {
    file: "`config.json` of a model",
    groups: &[
        &[
            Field::applied(&[
                "model_type",
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "head_dim",
                "rms_norm_eps",
                "max_position_embeddings",
                "original_max_position_embeddings",
            ]),
            Field::applied(&["tie_word_embeddings"])
                .with_note("not tied where the file has a head that differs from the embeddings"),
            Field::applied(&["attention_bias", "mlp_bias"])
                .with_note("of the families that have it; others ignore it, as in transformers"),
            Field::applied(&[
                "sliding_window",
                "use_sliding_window",
                "max_window_layers",
                "layer_types",
            ])
            .with_note("of the families that have windows; Llama has none, whatever the file says"),
            Field::applied(&["rope_theta", "rope_scaling", "rope_parameters"]).with_note(
                "types default, linear, dynamic, yarn, longrope and llama3; fields of `rope_scaling`, then of `rope_parameters`, come before `rope_theta` outside of both",
            ),
            Field::applied(&["hidden_act"])
                .with_note("silu, swish, gelu, gelu_pytorch_tanh and gelu_new"),
            Field::only(&["partial_rotary_factor"], |share| share.as_f64() == Some(1.0), "1"),
            Field::only(
                &["attention_dropout"],
                |dropout| dropout.as_f64() == Some(0.0),
                "0: the model is frozen",
            ),
            Field::refused(
                &["quantization_config"],
                "use the model's safetensors in f32, bf16 or f16, or a GGUF file",
            ),
            Field::refused(&["per_layer_config"], "only layers of one shape are computed"),
        ],
        TRANSFORMERS_FIELDS,
    ],
};

/// `config.json`. Other names are DistilBERT's.
#[derive(Debug, Deserialize)]
pub(crate) struct ConfigFile {
    pub(crate) model_type: String,
    pub(crate) vocab_size: i64,
    #[serde(alias = "dim")]
    pub(crate) hidden_size: i64,
    #[serde(alias = "hidden_dim")]
    pub(crate) intermediate_size: i64,
    #[serde(alias = "n_layers")]
    pub(crate) num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    pub(crate) num_attention_heads: i64,
    pub(crate) num_key_value_heads: Option<i64>,
    pub(crate) head_dim: Option<i64>,
    pub(crate) rms_norm_eps: Option<f64>,
    pub(crate) max_position_embeddings: i64,
    pub(crate) original_max_position_embeddings: Option<f64>,
    pub(crate) rope_theta: Option<f64>,
    pub(crate) rope_scaling: Option<RopeFields>,
    pub(crate) rope_parameters: Option<RopeFields>,
    pub(crate) partial_rotary_factor: Option<f64>,
    pub(crate) rope_local_base_freq: Option<f64>,
    pub(crate) tie_word_embeddings: Option<bool>,
    pub(crate) attention_bias: Option<bool>,
    pub(crate) mlp_bias: Option<bool>,
    #[serde(alias = "activation")]
    pub(crate) hidden_act: Option<String>,
    pub(crate) hidden_activation: Option<String>,
    pub(crate) sliding_window: Option<i64>,
    pub(crate) sliding_window_pattern: Option<usize>,
    pub(crate) use_sliding_window: Option<bool>,
    pub(crate) max_window_layers: Option<usize>,
    pub(crate) layer_types: Option<Vec<String>>,
    pub(crate) no_rope_layers: Option<Vec<i64>>,
    pub(crate) no_rope_layer_interval: Option<usize>,
    pub(crate) query_pre_attn_scalar: Option<f64>,
    pub(crate) attn_logit_softcapping: Option<f64>,
    pub(crate) final_logit_softcapping: Option<f64>,
    pub(crate) embedding_multiplier: Option<f64>,
    pub(crate) attention_multiplier: Option<f64>,
    pub(crate) residual_multiplier: Option<f64>,
    pub(crate) logits_scaling: Option<f64>,
    pub(crate) layer_norm_eps: Option<f64>,
    pub(crate) type_vocab_size: Option<i64>,
    pub(crate) pad_token_id: Option<i64>,
    pub(crate) norm_eps: Option<f64>,
    pub(crate) norm_bias: Option<bool>,
    pub(crate) local_attention: Option<i64>,
    pub(crate) global_attn_every_n_layers: Option<usize>,
    pub(crate) global_rope_theta: Option<f64>,
    pub(crate) local_rope_theta: Option<f64>,
}

/// The activation that a field names.
pub(crate) fn activation(field: &str, name: Option<&str>) -> Resolved<MlpActivation> {
    let name = name.unwrap_or("silu");
    MlpActivation::named(name).ok_or_else(|| {
        format!("{field} is {name:?}, expected silu, swish, gelu, gelu_pytorch_tanh or gelu_new")
    })
}

/// A factor, divisor or bound, with its default; it must be positive.
pub(crate) fn positive(field: &str, number: Option<f64>, usual: f64) -> Resolved<f64> {
    match number.unwrap_or(usual) {
        number if number.is_finite() && number > 0.0 => Ok(number),
        number => Err(format!("{field} is {number}, expected a positive number")),
    }
}
