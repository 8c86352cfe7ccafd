//! `adapter_config.json` of PEFT: the fields that a method does not use itself.

use std::collections::BTreeMap;

use reft_models::{Error, Field, Fields, ModelDescription, Result};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};

use crate::ActsOn;

/// Fields of `adapter_config.json` that are kept for later readers of the file.
///
/// A field is accepted if it changes nothing here: it is switched off (null, false or empty), or only tells how the adapter was made. Every
/// other field is refused by name, also the new fields of later PEFT versions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct OtherFields(BTreeMap<String, Value>);

/// Fields that PEFT 0.21 writes of every method.
const COMMON: &[Field] = &[
    Field::neutral(
        &[
            "auto_mapping",
            "base_model_name_or_path",
            "inference_mode",
            "peft_version",
            "revision",
            "task_type",
        ],
        "history",
    ),
    Field::applied(&["peft_type"]),
    MODULES_TO_SAVE,
];

/// Fields of methods that change modules by name.
const MODULES: &[Field] = &[
    Field::applied(&["tokens"]).with_note("not PEFT's: of adapters that act on the prompt alone, which PEFT refuses"),
    Field::applied(&["target_modules"]).with_note(
        "where it says nothing, the modules whose tensors the file holds; a name that means no projection is said",
    ),
];

/// Modules that are stored whole.
const MODULES_TO_SAVE: Field = Field::only(
    &["modules_to_save"],
    names_heads,
    "null, or the head of a classification, which is kept; merge other modules into the model in PEFT first",
);

/// Fields of methods of virtual tokens.
const VIRTUAL_TOKENS: &[Field] = &[
    Field::applied(&["num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers"]),
    Field::only(&["num_transformer_submodules"], |n| n == 1, "1"),
];

/// `adapter_config.json` of LoRA.
pub(crate) const LORA: Fields = Fields {
    file: "`adapter_config.json` of LoRA, rsLoRA and DoRA",
    groups: &[
        COMMON,
        MODULES,
        &[
            Field::applied(&["r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"]),
            Field::applied(&["exclude_modules"]),
            Field::applied(&["layers_to_transform", "layers_pattern"]),
            Field::applied(&["rank_pattern", "alpha_pattern"])
                .with_note("a pattern that means none of the modules is refused"),
            Field::only(
                &["bias"],
                |bias| BIASES.iter().any(|own| bias == own),
                "\"none\"; \"all\" and \"lora_only\" for a model without biases",
            ),
            Field::only(
                &["init_lora_weights"],
                is_start,
                "true, false, gaussian, orthogonal, mica or eva, or lora_ga, which is applied to the model as it is and not merged; others change the model too: convert them in PEFT first, save_pretrained with path_initial_model_for_weight_conversion",
            ),
            Field::neutral(
                &[
                    "corda_config",
                    "eva_config",
                    "loftq_config",
                    "lora_ga_config",
                    "megatron_core",
                    "qalora_group_size",
                    "runtime_config",
                    "velora_config",
                ],
                "how it started, or what training kept",
            ),
            Field::neutral(&["ensure_weight_tying"], "of embeddings, which no adapter here has"),
            Field::refused(&["fan_in_fan_out"], "no model here stores its weights so"),
            Field::refused(
                &[
                    "alora_invocation_tokens",
                    "arrow_config",
                    "kasa_config",
                    "monteclora_config",
                    "use_bdlora",
                    "use_qalora",
                ],
                "it computes something else than LoRA; merge it into the model in PEFT first",
            ),
            Field::refused(
                &[
                    "layer_replication",
                    "lora_bias",
                    "megatron_config",
                    "target_parameters",
                    "trainable_token_indices",
                ],
                "merge it into the model in PEFT first",
            ),
        ],
    ],
};

/// `adapter_config.json` of (IA)³.
pub(crate) const IA3: Fields = Fields {
    file: "`adapter_config.json` of (IA)³",
    groups: &[
        COMMON,
        MODULES,
        &[
            Field::applied(&["feedforward_modules", "exclude_modules"]),
            Field::neutral(&["init_ia3_weights"], "how it started"),
            Field::refused(&["fan_in_fan_out"], "no model here stores its weights so"),
        ],
    ],
};

/// `adapter_config.json` of RoAd.
pub(crate) const ROAD: Fields = Fields {
    file: "`adapter_config.json` of RoAd",
    groups: &[
        COMMON,
        MODULES,
        &[
            Field::applied(&["variant", "group_size"]),
            Field::neutral(&["init_weights"], "how it started"),
        ],
    ],
};

/// `adapter_config.json` of prefix tuning.
pub(crate) const PREFIX: Fields = Fields {
    file: "`adapter_config.json` of prefix tuning",
    groups: &[
        COMMON,
        VIRTUAL_TOKENS,
        &[
            Field::applied(&["encoder_hidden_size", "prefix_projection"])
                .with_note("the file holds the prefix that the encoder made"),
            Field::neutral(&["init_weights"], "how it started"),
        ],
    ],
};

/// `adapter_config.json` of prompt tuning.
pub(crate) const PROMPT: Fields = Fields {
    file: "`adapter_config.json` of prompt tuning",
    groups: &[
        COMMON,
        VIRTUAL_TOKENS,
        &[Field::neutral(
            &[
                "prompt_tuning_init",
                "prompt_tuning_init_text",
                "tokenizer_kwargs",
                "tokenizer_name_or_path",
            ],
            "how it started",
        )],
    ],
};

const BIASES: [&str; 3] = ["none", "all", "lora_only"];

/// Starts of LoRA that leave the base model's weights alone. Other starts change the weights too, so their adapters do not fit the published
/// model.
const STARTS: [&str; 5] = ["eva", "gaussian", LORA_GA, "mica", "orthogonal"];
const LORA_GA: &str = "lora_ga";

fn is_start(start: &Value) -> bool {
    start.is_boolean() || STARTS.iter().any(|own| start == own)
}

/// The names that PEFT always writes for the heads of its classification tasks.
const HEADS: [&str; 3] = ["classifier", "score", "qa_outputs"];

fn names_heads(modules: &Value) -> bool {
    let names = modules.as_array().map_or(&[][..], Vec::as_slice);
    names.iter().all(|name| HEADS.iter().any(|head| name == head))
}

/// `adapter_config.json` of every type that is read.
pub const PEFT_FILES: [&Fields; 5] = [&LORA, &IA3, &ROAD, &PREFIX, &PROMPT];

impl OtherFields {
    /// The fields that PEFT writes of every method, and a method's own.
    pub(crate) fn of(peft_type: &str, model: &ModelDescription, own: Value) -> Self {
        let common = json!({
            "auto_mapping": null, "inference_mode": true, "peft_type": peft_type, "revision": null,
            "task_type": if model.is_causal { "CAUSAL_LM" } else { "FEATURE_EXTRACTION" },
        });
        let fields = [common, own].map(serde_json::from_value::<BTreeMap<String, Value>>);
        Self(fields.into_iter().flat_map(|own| own.expect("invariant: fields by name")).collect())
    }

    /// Refuses a `peft_type` that contradicts the field `tokens`.
    pub(crate) fn check_acts_on(&self, tokens: ActsOn) -> Result<()> {
        let peft_type = self.0.get("peft_type").and_then(Value::as_str).unwrap_or_default();
        let (of_all, told) = ActsOn::of_peft_type(peft_type);
        if told == tokens {
            return Ok(());
        }
        let expected = tokens.peft_type(of_all);
        let reason = format!(
            "adapter_config.json: tokens is {tokens} and peft_type {peft_type}, expected {expected} with it"
        );
        Err(Error::Adapter { reason })
    }

    /// Refuses trained biases, unless the model has none to train.
    pub(crate) fn check_biases(&self, model: &ModelDescription) -> Result<()> {
        let bias = self.0.get("bias").filter(|value| *value != "none");
        let has_biases = model.tensors.iter().any(|tensor| tensor.name.ends_with(".bias"));
        match bias.filter(|_| has_biases) {
            Some(found) => {
                let reason = format!(
                    "adapter_config.json: bias is {found}, expected \"none\" for a model with biases"
                );
                Err(Error::Adapter { reason })
            }
            None => Ok(()),
        }
    }

    /// Whether a tensor belongs to a task's head in the same file. PEFT saves every module whose name ends like this: `pre_classifier` for
    /// `classifier`.
    pub(crate) fn has_head(&self, tensor: &str) -> bool {
        let modules = self.0.get("modules_to_save").and_then(Value::as_array);
        modules
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .any(|own| tensor.match_indices('.').any(|(end, _)| tensor[..end].ends_with(own)))
    }

    /// The fields with one of them changed.
    pub(crate) fn with(mut self, field: &str, value: Value) -> Self {
        self.0.insert(field.to_owned(), value);
        self
    }

    /// Whether it says that it started as LoRA-GA does, which changes the base model's weights too.
    pub(crate) fn starts_as_lora_ga(&self) -> bool {
        self.0.get("init_lora_weights").is_some_and(|start| start == LORA_GA)
    }

    /// Refuses fields that would change the adapter's output.
    pub(crate) fn check(&self, known: &Fields) -> Result<()> {
        known
            .check(&self.0)
            .map_err(|reason| Error::Adapter { reason: format!("adapter_config.json: {reason}") })
    }
}

/// Compares fields of a configuration, `(name, found, expected)`, with the model's.
pub(crate) fn check_model(fields: &[(&str, i64, i64)]) -> Result<()> {
    let Some((field, found, expected)) = fields.iter().find(|(_, found, own)| found != own) else {
        return Ok(());
    };
    let advice = "use the adapter's own base model";
    let reason =
        format!("adapter_config.json: {field} is {found}, this model needs {expected}; {advice}");
    Err(Error::Adapter { reason })
}

/// Writes 8.0 as 8, as PEFT's users write alpha.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) fn whole_if_it_is<S: Serializer>(x: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if x.fract() == 0.0 && x.abs() < 2f64.powi(53) {
        serializer.serialize_i64(*x as i64)
    } else {
        serializer.serialize_f64(*x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_modules_whose_names_end_as_those_that_are_saved() -> serde_json::Result<()> {
        let other: OtherFields =
            serde_json::from_value(json!({ "modules_to_save": ["classifier", "score"] }))?;
        for (tensor, is_head) in [
            ("base_model.model.classifier.weight", true),
            ("base_model.model.pre_classifier.bias", true),
            ("base_model.model.classifier.dense.weight", true),
            ("base_model.model.scores.weight", false),
            ("base_model.model.encoder.layer.0.output.dense.lora_A.weight", false),
        ] {
            assert_eq!(other.has_head(tensor), is_head, "{tensor}");
        }
        Ok(())
    }
}
