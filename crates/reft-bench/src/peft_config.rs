//! `adapter_config.json` of PEFT 0.14 (huggingface/peft), field by field.

use std::collections::BTreeMap;

use reft_models::{Error, Result};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::target_modules::{TargetModules, whole_match};

/// LoRA and DoRA as `adapter_config.json` says them (`peft_type` LORA).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Directory or hub name of the base model, for the reader.
    pub base_model_name_or_path: Option<String>,
    /// Rank `r` of `B A`.
    pub r: i64,
    /// `alpha` of `scaling = alpha / r`.
    #[serde(serialize_with = "whole_if_it_is")]
    pub lora_alpha: f64,
    /// Probability that a number of the input of `A` is dropped in training.
    pub lora_dropout: f64,
    /// The projections adapted.
    pub target_modules: TargetModules,
    /// The layers adapted; all if there is none.
    #[serde(default)]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Ranks of modules that have another one: the end of a module name (a regular expression), then the rank.
    #[serde(default)]
    pub rank_pattern: Map<String, Value>,
    /// Alphas of modules that have another one, likewise.
    #[serde(default)]
    pub alpha_pattern: Map<String, Value>,
    /// Rank-stabilised LoRA: `scaling = alpha / √r` (Kalajdzievski 2023, arXiv:2312.03732).
    #[serde(default)]
    pub use_rslora: bool,
    /// DoRA: magnitude and direction apart.
    #[serde(default)]
    pub use_dora: bool,
    /// The other fields of the file, which change nothing here.
    #[serde(flatten)]
    pub other: OtherFields,
}

impl LoraConfig {
    /// LoRA of rank `r` on some projections of every layer, without dropout.
    pub fn new(r: i64, lora_alpha: f64, target_modules: TargetModules) -> Self {
        let other = json!({
            "auto_mapping": null, "bias": "none", "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false,
            "inference_mode": true, "init_lora_weights": true, "layer_replication": null, "layers_pattern": null,
            "loftq_config": {}, "lora_bias": false, "megatron_config": null, "megatron_core": "megatron.core",
            "modules_to_save": null, "peft_type": "LORA", "revision": null, "task_type": "CAUSAL_LM",
        });
        Self {
            base_model_name_or_path: None,
            r,
            lora_alpha,
            lora_dropout: 0.0,
            target_modules,
            layers_to_transform: None,
            rank_pattern: Map::new(),
            alpha_pattern: Map::new(),
            use_rslora: false,
            use_dora: false,
            other: OtherFields::of(other),
        }
    }

    /// Name of the method: lora, rslora or dora.
    pub fn method(&self) -> &'static str {
        match (self.use_dora, self.use_rslora) {
            (true, _) => "dora",
            (false, true) => "rslora",
            (false, false) => "lora",
        }
    }

    /// Rank and scaling of a module.
    ///
    /// # Errors
    /// [`Error::Adapter`] if a rank is not positive, or a pattern is none.
    pub fn rank_and_scaling(&self, module: &str) -> Result<(i64, f64)> {
        let wrong = |what: &str, value: String| Error::Adapter {
            reason: format!("{what} of {module} is {value}, expected a positive number"),
        };
        let rank = match of_pattern(&self.rank_pattern, module)? {
            Some(value) => {
                value.as_i64().ok_or_else(|| wrong("rank_pattern", value.to_string()))?
            }
            None => self.r,
        };
        let alpha = match of_pattern(&self.alpha_pattern, module)? {
            Some(value) => {
                value.as_f64().ok_or_else(|| wrong("alpha_pattern", value.to_string()))?
            }
            None => self.lora_alpha,
        };
        if rank < 1 {
            return Err(wrong("r", rank.to_string()));
        }
        let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, alpha / divisor))
    }

    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// [`Error::Adapter`], or [`reft_core::Error::Dropout`].
    pub fn check(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(reft_core::Error::Dropout(self.lora_dropout).into());
        }
        if !self.lora_alpha.is_finite() {
            let reason = format!("lora_alpha is {}, expected a finite number", self.lora_alpha);
            return Err(Error::Adapter { reason });
        }
        self.other.check("LORA", &[("init_lora_weights", &LORA_INIT)])
    }
}

/// Prefix tuning as `adapter_config.json` says it (`peft_type` PREFIX_TUNING).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrefixConfig {
    /// Directory or hub name of the base model, for the reader.
    pub base_model_name_or_path: Option<String>,
    /// Number of prefix tokens.
    pub num_virtual_tokens: i64,
    /// Size of all keys of a token, `n_kv · d_h`.
    pub token_dim: i64,
    /// Heads of keys and values, `n_kv`.
    pub num_attention_heads: i64,
    /// Layers of the model.
    pub num_layers: usize,
    /// Inner size of the MLP that makes the prefix while it trains.
    pub encoder_hidden_size: i64,
    /// Whether there is such an MLP.
    pub prefix_projection: bool,
    /// The other fields of the file, which change nothing here.
    #[serde(flatten)]
    pub other: OtherFields,
}

impl PrefixConfig {
    /// A prefix of `n` tokens for a decoder, made directly or by an MLP with an inner size.
    pub fn new(n: i64, encoder: Option<i64>, config: &reft_models::DecoderConfig) -> Self {
        let token_dim = config.num_key_value_heads * config.head_dim;
        Self {
            base_model_name_or_path: None,
            num_virtual_tokens: n,
            token_dim,
            num_attention_heads: config.num_key_value_heads,
            num_layers: config.num_hidden_layers,
            encoder_hidden_size: encoder.unwrap_or(token_dim),
            prefix_projection: encoder.is_some(),
            other: OtherFields::of(prompt_learning("PREFIX_TUNING")),
        }
    }
}

/// Prompt tuning as `adapter_config.json` says it (`peft_type` PROMPT_TUNING).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptConfig {
    /// Directory or hub name of the base model, for the reader.
    pub base_model_name_or_path: Option<String>,
    /// Number of virtual tokens.
    pub num_virtual_tokens: i64,
    /// Hidden size `d`.
    pub token_dim: i64,
    /// Query heads of the model.
    pub num_attention_heads: i64,
    /// Layers of the model.
    pub num_layers: usize,
    /// The other fields of the file, which change nothing here.
    #[serde(flatten)]
    pub other: OtherFields,
}

impl PromptConfig {
    /// A prompt of `n` virtual tokens for a decoder.
    pub fn new(n: i64, config: &reft_models::DecoderConfig) -> Self {
        let mut other = OtherFields::of(prompt_learning("PROMPT_TUNING"));
        other.0.extend([
            ("prompt_tuning_init".to_owned(), json!("RANDOM")),
            ("prompt_tuning_init_text".to_owned(), Value::Null),
            ("tokenizer_kwargs".to_owned(), Value::Null),
            ("tokenizer_name_or_path".to_owned(), Value::Null),
        ]);
        Self {
            base_model_name_or_path: None,
            num_virtual_tokens: n,
            token_dim: config.hidden_size,
            num_attention_heads: config.num_attention_heads,
            num_layers: config.num_hidden_layers,
            other,
        }
    }
}

/// (IA)³ as `adapter_config.json` says it (`peft_type` IA3).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ia3Config {
    /// Directory or hub name of the base model, for the reader.
    pub base_model_name_or_path: Option<String>,
    /// The projections rescaled.
    pub target_modules: TargetModules,
    /// Those of them whose input is rescaled instead of their output.
    pub feedforward_modules: TargetModules,
    /// The other fields of the file, which change nothing here.
    #[serde(flatten)]
    pub other: OtherFields,
}

impl Ia3Config {
    /// Rescales the outputs of some projections, and the inputs of others, of every layer.
    pub fn new(target_modules: TargetModules, feedforward_modules: TargetModules) -> Self {
        let other = json!({
            "auto_mapping": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
            "init_ia3_weights": true, "modules_to_save": null, "peft_type": "IA3", "revision": null,
            "task_type": "CAUSAL_LM",
        });
        let other = OtherFields::of(other);
        Self { base_model_name_or_path: None, target_modules, feedforward_modules, other }
    }
}

/// Fields of `adapter_config.json` that are kept for whoever reads the file next.
///
/// A field may be there if it changes nothing here: it is switched off (null, false or empty), or it only tells how the adapter came
/// to be. Everything else is refused by name, also what newer versions of PEFT add.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OtherFields(BTreeMap<String, Value>);

/// Fields that say nothing about what the adapter computes.
const HISTORY: [&str; 16] = [
    "auto_mapping",
    "eva_config",
    "inference_mode",
    "init_ia3_weights",
    "megatron_core",
    "peft_version",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "qalora_group_size",
    "random_state",
    "revision",
    "runtime_config",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
    "loftq_config",
    "corda_config",
];

/// Starts that leave the base model's weights alone.
const LORA_INIT: [Value; 2] = [Value::Bool(true), Value::Bool(false)];

impl OtherFields {
    fn of(fields: Value) -> Self {
        match fields {
            Value::Object(fields) => Self(fields.into_iter().collect()),
            _ => Self::default(),
        }
    }

    /// Refuses fields that would change what the adapter computes; `also`: values accepted of a field.
    pub(crate) fn check(&self, peft_type: &str, also: &[(&str, &[Value])]) -> Result<()> {
        for (field, value) in &self.0 {
            let is_off = match value {
                Value::Null | Value::Bool(false) => true,
                Value::String(s) => s.is_empty(),
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                Value::Bool(true) | Value::Number(_) => false,
            };
            let is_accepted = match field.as_str() {
                "peft_type" => value == peft_type,
                "task_type" => value == "CAUSAL_LM",
                "bias" => value == "none",
                "init_lora_weights" if value == "gaussian" || value == "eva" => true,
                "num_transformer_submodules" => value == 1,
                name if HISTORY.contains(&name) => true,
                name => also.iter().any(|(other, values)| *other == name && values.contains(value)),
            };
            if !(is_off || is_accepted) {
                let reason = format!(
                    "adapter_config.json: {field} is {value}, which this program does not know how to apply; \
                     it reads adapters without it"
                );
                return Err(Error::Adapter { reason });
            }
        }
        Ok(())
    }
}

/// Compares fields of a configuration, `(name, found, expected)`, with what the model needs.
pub(crate) fn check_model(fields: &[(&str, i64, i64)]) -> Result<()> {
    let Some((field, found, expected)) = fields.iter().find(|(_, found, own)| found != own) else {
        return Ok(());
    };
    let advice = "use the adapter's own base model";
    let reason =
        format!("adapter_config.json: {field} is {found}, this model needs {expected}; {advice}");
    Err(Error::Adapter { reason })
}

/// Checks that a size is one.
pub(crate) fn check_positive(field: &str, found: i64) -> Result<()> {
    if found > 0 {
        return Ok(());
    }
    Err(Error::Adapter { reason: format!("{field} is {found}, expected a positive number") })
}

/// What the configurations of prefix and prompt tuning share.
fn prompt_learning(peft_type: &str) -> Value {
    json!({
        "auto_mapping": null, "inference_mode": true, "num_transformer_submodules": 1, "peft_type": peft_type,
        "revision": null, "task_type": "CAUSAL_LM",
    })
}

/// The value of the first pattern that matches the end of a module's name.
fn of_pattern<'a>(patterns: &'a Map<String, Value>, module: &str) -> Result<Option<&'a Value>> {
    for (pattern, value) in patterns {
        if whole_match(&format!(r".*\.(?:{pattern})"))?.is_match(module) {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// Writes 8.0 as 8, as PEFT's users write alpha.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn whole_if_it_is<S: Serializer>(x: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if x.fract() == 0.0 && x.abs() < 2f64.powi(53) {
        serializer.serialize_i64(*x as i64)
    } else {
        serializer.serialize_f64(*x)
    }
}
