//! `config.json` as Hugging Face writes it. Every field is applied, or known to change no number, or refused by its name.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::{DecoderConfig, Field, Fields, ModelDescription, RopeScaling, says_nothing};

type Resolved<T> = std::result::Result<T, String>;

/// What transformers 5.24 takes of a family where `config.json` says nothing, and what it reads of it at all.
struct Family {
    model_type: &'static str,
    num_key_value_heads: Option<i64>, // none: as many as query heads
    head_dim: Option<i64>,            // none: hidden_size / num_attention_heads
    max_position_embeddings: i64,
    window: Window,
    /// Whether `attention_bias` is read; else q, k and v have a bias where `qkv_bias` says so.
    reads_attention_bias: bool,
    qkv_bias: bool,
    reads_mlp_bias: bool,
    qk_norm: bool,
}

/// Where a family has sliding windows.
#[derive(PartialEq)]
enum Window {
    /// Nowhere, whatever the file says.
    Never,
    /// At every layer; 4,096 tokens where the file does not say.
    Everywhere,
    /// At the layers that `layer_types` names, or those from `max_window_layers` on, if `use_sliding_window` is set.
    ByLayer,
}

const FAMILIES: [Family; 4] = [
    Family {
        model_type: "llama",
        num_key_value_heads: None,
        head_dim: None,
        max_position_embeddings: 2048,
        window: Window::Never,
        reads_attention_bias: true,
        qkv_bias: false,
        reads_mlp_bias: true,
        qk_norm: false,
    },
    Family {
        model_type: "mistral",
        num_key_value_heads: Some(8),
        head_dim: None,
        max_position_embeddings: 131_072,
        window: Window::Everywhere,
        reads_attention_bias: false,
        qkv_bias: false,
        reads_mlp_bias: false,
        qk_norm: false,
    },
    Family {
        model_type: "qwen2",
        num_key_value_heads: Some(32),
        head_dim: None,
        max_position_embeddings: 32_768,
        window: Window::ByLayer,
        reads_attention_bias: false,
        qkv_bias: true,
        reads_mlp_bias: false,
        qk_norm: false,
    },
    Family {
        model_type: "qwen3",
        num_key_value_heads: Some(32),
        head_dim: Some(128),
        max_position_embeddings: 32_768,
        window: Window::ByLayer,
        reads_attention_bias: true,
        qkv_bias: false,
        reads_mlp_bias: false,
        qk_norm: true,
    },
];

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
    "history, tokens, generation, or what training from nothing would need",
)];

/// The fields of `config.json`, as transformers 5.24 has them.
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
                "types default, linear and llama3; what stands in `rope_scaling`, then in `rope_parameters`, comes before `rope_theta` beside them",
            ),
            Field::only(&["partial_rotary_factor"], |share| share.as_f64() == Some(1.0), "1"),
            Field::only(
                &["hidden_act"],
                |act| ["silu", "swish"].iter().any(|own| act == own),
                "\"silu\"",
            ),
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

/// `config.json`.
#[derive(Debug, Deserialize)]
pub(crate) struct ConfigFile {
    model_type: String,
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    #[serde(default, deserialize_with = "given")]
    num_key_value_heads: Option<Option<i64>>,
    head_dim: Option<i64>,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    rope_scaling: Option<BTreeMap<String, Value>>,
    rope_parameters: Option<BTreeMap<String, Value>>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    #[serde(default, deserialize_with = "given")]
    sliding_window: Option<Option<i64>>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    max_position_embeddings: Option<i64>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

/// A field that is there, `null` or not.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(field: D) -> Result<Option<T>, D::Error> {
    T::deserialize(field).map(Some)
}

fn default_eps() -> f64 {
    1e-6
}

impl ConfigFile {
    /// The configuration, with transformers' defaults filled in; else what was found and what was expected.
    pub(crate) fn resolve(self) -> Resolved<DecoderConfig> {
        let known = FAMILIES.map(|family| family.model_type);
        let family = FAMILIES.into_iter().find(|family| family.model_type == self.model_type);
        let family = family.ok_or_else(|| {
            format!("model_type is {:?}, expected one of {known:?}", self.model_type)
        })?;
        CONFIG.check(&self.other)?;
        let heads = self.num_attention_heads;
        let kv_heads = match self.num_key_value_heads {
            None => family.num_key_value_heads.unwrap_or(heads),
            Some(given) => given.unwrap_or(heads),
        };
        // Far above any model, and low enough that products of them are numbers and lists of layers fit in memory.
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_hidden_layers", self.num_hidden_layers as i64, 1 << 12),
            ("num_attention_heads", heads, 1 << 12),
            ("num_key_value_heads", kv_heads, 1 << 12),
        ];
        for (name, size, limit) in sizes {
            if !(1..=limit).contains(&size) {
                return Err(format!("{name} is {size}, expected a size from 1 to {limit}"));
            }
        }
        let head_dim = self.head_dim.or(family.head_dim).unwrap_or(self.hidden_size / heads);
        if head_dim < 2 || head_dim % 2 != 0 || head_dim > 1 << 12 {
            return Err(format!("head_dim is {head_dim}, expected an even size from 2 to 4096"));
        }
        if heads % kv_heads != 0 {
            let expected = "expected a divisor of num_attention_heads";
            return Err(format!("num_key_value_heads is {kv_heads}, {expected} {heads}"));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(format!(
                "rms_norm_eps is {}, expected a number that is not negative",
                self.rms_norm_eps
            ));
        }
        let max_position_embeddings =
            self.max_position_embeddings.unwrap_or(family.max_position_embeddings);
        let attention_bias = self.attention_bias.filter(|_| family.reads_attention_bias);
        let (rope_theta, rope_scaling) = self.rope(max_position_embeddings)?;
        Ok(DecoderConfig {
            rope_theta,
            rope_scaling,
            rms_norm_eps: self.rms_norm_eps,
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            qkv_bias: attention_bias.unwrap_or(family.qkv_bias),
            attention_output_bias: attention_bias.unwrap_or(false),
            mlp_bias: self.mlp_bias.filter(|_| family.reads_mlp_bias).unwrap_or(false),
            qk_norm: family.qk_norm,
            model: ModelDescription {
                vocab_size: self.vocab_size,
                hidden_size: self.hidden_size,
                intermediate_size: self.intermediate_size,
                num_hidden_layers: self.num_hidden_layers,
                num_attention_heads: heads,
                num_key_value_heads: kv_heads,
                head_dim,
                max_position_embeddings,
                is_causal: true,
                windows: self.windows(&family.window)?,
                tensors: Vec::new(),
                model_type: self.model_type,
            },
        })
    }

    /// How far each layer sees.
    fn windows(&self, family: &Window) -> Resolved<Vec<Option<i64>>> {
        const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];
        let layers = self.num_hidden_layers;
        if let Some(types) = &self.layer_types {
            if types.len() != layers {
                let found = types.len();
                return Err(format!("layer_types names {found} layers, expected {layers}"));
            }
            if let Some(other) = types.iter().find(|name| !KINDS.contains(&name.as_str())) {
                return Err(format!(
                    "layer_types names {other:?}, expected {}",
                    KINDS.join(" or ")
                ));
            }
        }
        let window = match family {
            Window::Never => None,
            Window::Everywhere => self.sliding_window.unwrap_or(Some(4096)),
            Window::ByLayer if self.use_sliding_window != Some(true) => None,
            Window::ByLayer => self.sliding_window.unwrap_or(Some(4096)),
        };
        if let Some(window) = window.filter(|window| *window < 1) {
            return Err(format!("sliding_window is {window}, expected a positive size or null"));
        }
        let slides = |layer: usize| match (family, &self.layer_types) {
            (Window::ByLayer, Some(types)) => types[layer] == KINDS[1],
            (Window::ByLayer, None) => layer >= self.max_window_layers.unwrap_or(28),
            _ => true,
        };
        let of_layer = |layer| window.filter(|_| slides(layer));
        let windows: Vec<Option<i64>> = (0..layers).map(of_layer).collect();
        // what the file says of layers, and what transformers makes of it, should be the same
        for (layer, name) in self.layer_types.iter().flatten().enumerate() {
            if (name == KINDS[1]) != windows[layer].is_some() {
                return Err(format!(
                    "layer_types says {name} of layer {layer}, and sliding_window and use_sliding_window of {} say otherwise",
                    self.model_type
                ));
            }
        }
        Ok(windows)
    }

    /// Base θ and scaling. What `rope_scaling` holds, or else `rope_parameters`, comes before `rope_theta` beside them.
    fn rope(&self, max_position_embeddings: i64) -> Resolved<(f64, RopeScaling)> {
        let is_there = |rope: &&BTreeMap<String, Value>| !rope.is_empty();
        let given = self.rope_scaling.as_ref().filter(is_there);
        let empty = BTreeMap::new();
        let rope = given.or(self.rope_parameters.as_ref()).unwrap_or(&empty);
        let number = |name: &str| match rope.get(name).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
                _ => Err(format!("rope: {name} is {value}, expected a positive number")),
            },
        };
        let needed = |name: &str| number(name)?.ok_or_else(|| format!("rope: {name} is missing"));
        let theta = number("rope_theta")?.or(self.rope_theta).unwrap_or(10_000.0);
        if !(theta.is_finite() && theta > 0.0) {
            return Err(format!("rope_theta is {theta}, expected a positive number"));
        }
        if let Some(share) = number("partial_rotary_factor")?.filter(|share| *share != 1.0) {
            return Err(format!("rope: partial_rotary_factor is {share}, expected 1"));
        }
        let text = |name: &str| rope.get(name).and_then(Value::as_str);
        let kind = text("rope_type").or(text("type")).unwrap_or("default");
        let (scaling, own): (RopeScaling, &[&str]) = match kind {
            "default" => (RopeScaling::None, &[]),
            "linear" => (RopeScaling::Linear { factor: needed("factor")? }, &["factor"]),
            "llama3" => {
                let own = number("original_max_position_embeddings")?;
                let original = self.original_max_position_embeddings.or(own);
                let scaling = RopeScaling::Llama3 {
                    factor: needed("factor")?,
                    low_freq_factor: needed("low_freq_factor")?,
                    high_freq_factor: needed("high_freq_factor")?,
                    original_max_position_embeddings: original
                        .unwrap_or(max_position_embeddings as f64),
                };
                let own = &[
                    "factor",
                    "low_freq_factor",
                    "high_freq_factor",
                    "original_max_position_embeddings",
                ];
                (scaling, own)
            }
            other => {
                let expected = "expected default, linear or llama3";
                return Err(format!("rope scaling of type {other:?}, {expected}"));
            }
        };
        let of_all = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
        let is_known = |name: &str| of_all.contains(&name) || own.contains(&name);
        match rope.iter().find(|(name, value)| !is_known(name) && !says_nothing(value)) {
            Some((name, value)) => Err(format!(
                "rope: {name} is {value}, which rope of type {kind} does not have; name its rope_type, or remove the field"
            )),
            None => Ok((theta, scaling)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fate;
    use serde_json::json;

    fn file() -> Value {
        json!({
            "model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2,
        })
    }

    #[test]
    fn fields_that_are_said_to_be_applied_are_read() -> Result<(), serde_json::Error> {
        serde_json::from_value::<ConfigFile>(file())?;
        let fields = CONFIG.groups.iter().copied().flatten();
        for name in fields.filter(|f| matches!(f.fate, Fate::Applied)).flat_map(|f| f.names) {
            let mut odd = file();
            odd[*name] = json!([{ "odd": [] }]);
            assert!(serde_json::from_value::<ConfigFile>(odd).is_err(), "{name} is not read");
        }
        Ok(())
    }

    #[test]
    fn fields_that_nobody_knows_are_refused_by_name() -> Result<(), serde_json::Error> {
        for (name, value) in [
            ("attention_of_tomorrow", json!(true)),
            ("per_layer_config", json!({"0": {"num_key_value_heads": 1}})),
            ("logit_scale", json!(0.5)),
            ("hidden_act", json!("gelu")),
            ("attention_dropout", json!(0.1)),
            ("partial_rotary_factor", json!(0.5)),
            ("quantization_config", json!({"quant_method": "awq"})),
        ] {
            let mut odd = file();
            odd[name] = value;
            let refused = serde_json::from_value::<ConfigFile>(odd)?.resolve();
            assert!(refused.is_err_and(|reason| reason.starts_with(name)), "{name}");
        }
        Ok(())
    }

    fn resolved(edit: &Value) -> Resolved<DecoderConfig> {
        let mut own = file();
        for (name, value) in edit.as_object().into_iter().flatten() {
            own[name] = value.clone();
        }
        serde_json::from_value::<ConfigFile>(own).map_err(|error| error.to_string())?.resolve()
    }

    #[test]
    fn rope_is_applied_as_it_is_said_or_refused() {
        for (rope, complaint) in [
            (
                json!({"factor": 2.0}),
                "rope: factor is 2.0, which rope of type default does not have",
            ),
            (json!({"rope_type": "linear"}), "rope: factor is missing"),
            (json!({"rope_type": "linear", "factor": 0}), "rope: factor is 0, expected a positive"),
            (
                json!({"rope_type": "linear", "factor": "2"}),
                "rope: factor is \"2\", expected a pos",
            ),
            (json!({"rope_theta": -1.0}), "rope: rope_theta is -1.0, expected a positive number"),
            (json!({"partial_rotary_factor": 0.5}), "rope: partial_rotary_factor is 0.5"),
            (json!({"rope_type": "yarn", "factor": 4.0}), "rope scaling of type \"yarn\""),
            (
                json!({"rope_type": "linear", "factor": 2.0, "beta_fast": 32}),
                "rope: beta_fast is 32, which rope of type linear does not have",
            ),
        ] {
            for place in ["rope_scaling", "rope_parameters"] {
                let refused = resolved(&json!({ place: rope })).err().unwrap_or_default();
                assert!(refused.starts_with(complaint), "{place} {rope}: {refused}");
            }
        }
        for (field, value) in [("rope_theta", 0.0), ("rope_theta", -5.0), ("rms_norm_eps", -1e-6)] {
            let refused = resolved(&json!({ field: value })).err().unwrap_or_default();
            assert!(refused.starts_with(&format!("{field} is")), "{field} {value}: {refused}");
        }
    }

    #[test]
    fn windows_are_applied_as_transformers_does_or_refused() {
        let windows = |edit: Value| resolved(&edit).map(|config| config.model.windows);
        let qwen = |types: Value| {
            windows(json!({
                "model_type": "qwen2", "num_key_value_heads": 2, "use_sliding_window": true,
                "sliding_window": 7, "max_window_layers": 1, "layer_types": types,
            }))
        };
        assert_eq!(windows(json!({"sliding_window": 4})), Ok(vec![None, None]), "llama has none");
        let mistral = json!({"model_type": "mistral", "num_key_value_heads": 2});
        assert_eq!(windows(mistral), Ok(vec![Some(4096); 2]));
        assert_eq!(qwen(Value::Null), Ok(vec![None, Some(7)]));
        assert_eq!(qwen(json!(["sliding_attention", "full_attention"])), Ok(vec![Some(7), None]));
        for (types, complaint) in [
            (json!(["full_attention"]), "layer_types names 1 layers, expected 2"),
            (
                json!(["full_attention", "chunked_attention"]),
                "layer_types names \"chunked_attention\"",
            ),
        ] {
            assert!(
                qwen(types).is_err_and(|refused| refused.starts_with(complaint)),
                "{complaint}"
            );
        }
        for edit in [
            json!({"layer_types": ["sliding_attention", "full_attention"]}),
            json!({
                "model_type": "qwen3", "num_key_value_heads": 2, "sliding_window": null,
                "use_sliding_window": true, "layer_types": ["sliding_attention", "full_attention"],
            }),
        ] {
            let refused = windows(edit.clone()).err().unwrap_or_default();
            assert!(refused.starts_with("layer_types says sliding_attention"), "{edit}: {refused}");
        }
    }
}
