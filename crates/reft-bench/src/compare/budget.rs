use reft_core::{DeclaredOptions, Error as CoreError};
use reft_train::TrainConfig;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::MethodEntry;
use crate::fields::{read_fields, with_field};

/// How long and how every method is trained. In files: the training options with `is_in_recipes`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Budget {
    /// The trainer's options.
    pub options: TrainConfig,
}

impl Budget {
    /// The names of the options, in the order of files.
    fn names() -> impl Iterator<Item = &'static str> {
        let of_recipes = TrainConfig::DECLARED.iter().filter(|option| option.is_in_recipes);
        of_recipes.map(|option| option.name)
    }

    /// Sets an option, or gives the reason why its value is refused.
    fn set(&mut self, name: &str, value: &Value) -> Result<(), String> {
        if !Self::names().any(|known| known == name) {
            let names = Self::names().map(|known| format!("`{known}`")).collect::<Vec<_>>();
            return Err(format!("unknown field `{name}`, expected one of {}", names.join(", ")));
        }
        if value.is_null() {
            return Err(format!("{name} is no finite number")); // TOML's nan and inf
        }
        self.options = with_field(&self.options, name, value)?;
        Ok(())
    }

    /// The trainer's options for a method, a rate and a seed: every method takes all steps.
    pub fn train_config(&self, method: &MethodEntry, lr: f64, seed: u64) -> TrainConfig {
        let rotation_lr_factor = method.rotation_lr_factor.unwrap_or(1.0);
        let options = self.options.clone();
        TrainConfig { lr, rotation_lr_factor, seed, checkpoint_every: 0, ..options }
    }

    /// The first option with an invalid value for this method and rate, and the reason.
    pub(super) fn check(
        &self,
        method: &MethodEntry,
        lr: f64,
    ) -> Result<(), (&'static str, String)> {
        self.train_config(method, lr, 0).check().map_err(|error| match error {
            reft_train::Error::Core(CoreError::OptionValue { option, .. }) => {
                (option, error.to_string())
            }
            error => ("", error.to_string()),
        })
    }
}

impl Serialize for Budget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serde_json::to_value(&self.options).map_err(S::Error::custom)?;
        if let Some(fields) = fields.as_object_mut() {
            fields.retain(|name, _| Self::names().any(|known| known == name));
        }
        fields.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Budget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_fields(deserializer, Self::set)
    }
}
