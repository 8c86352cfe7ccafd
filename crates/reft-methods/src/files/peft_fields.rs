//! `adapter_config.json` of PEFT: the fields that a method does not use itself.

use std::collections::BTreeMap;

use reft_models::{Error, Result};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};

/// Fields of `adapter_config.json` that are kept for whoever reads the file next.
///
/// A field may be there if it changes nothing here: it is switched off (null, false or empty), or it only tells how the adapter came
/// to be. Everything else is refused by name, also what newer versions of PEFT add.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct OtherFields(BTreeMap<String, Value>);

/// Fields that say nothing about what the adapter computes.
const HISTORY: [&str; 17] = [
    "auto_mapping",
    "base_model_name_or_path",
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

impl OtherFields {
    /// The fields that PEFT writes of every method, and a method's own.
    pub(crate) fn of(peft_type: &str, own: Value) -> Self {
        let common = json!({
            "auto_mapping": null, "inference_mode": true, "peft_type": peft_type, "revision": null,
            "task_type": "CAUSAL_LM",
        });
        let fields = [common, own].map(serde_json::from_value::<BTreeMap<String, Value>>);
        Self(fields.into_iter().flat_map(|own| own.expect("invariant: fields by name")).collect())
    }

    /// Refuses fields that would change what the adapter computes.
    pub(crate) fn check(&self, peft_type: &str) -> Result<()> {
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
                // starts that leave the base model's weights alone
                "init_weights" if peft_type == "ROAD" => value.is_boolean(),
                "init_lora_weights" if peft_type == "LORA" => {
                    value.is_boolean() || value == "gaussian" || value == "eva"
                }
                "num_transformer_submodules" => value == 1,
                name => HISTORY.contains(&name),
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

/// Writes 8.0 as 8, as PEFT's users write alpha.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) fn whole_if_it_is<S: Serializer>(x: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if x.fract() == 0.0 && x.abs() < 2f64.powi(53) {
        serializer.serialize_i64(*x as i64)
    } else {
        serializer.serialize_f64(*x)
    }
}
