use serde::{Deserialize, Serialize};

use crate::{Error, ModelDescription, Result};

/// The identity of an adapter's base model. Facts that an imported adapter lacks are not checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseModel {
    /// Directory or hub name of the base model; for information only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_type: Option<String>,
    /// Hidden size `d`.
    pub hidden_size: i64,
    /// Number of decoder blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_hidden_layers: Option<usize>,
    /// Vocabulary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<i64>,
}

impl BaseModel {
    /// The identity of a model.
    pub fn of(model: &ModelDescription, name: impl Into<String>) -> Self {
        Self {
            name: Some(name.into()),
            model_type: Some(model.model_type.clone()),
            hidden_size: model.hidden_size,
            num_hidden_layers: Some(model.num_hidden_layers),
            vocab_size: Some(model.vocab_size),
        }
    }

    /// Checks that an adapter made for this model can run on a model with this description.
    ///
    /// # Errors
    /// [`Error::Adapter`] with both sides.
    pub fn check(&self, model: &ModelDescription) -> Result<()> {
        if self.hidden_size == model.hidden_size
            && self.model_type.as_ref().is_none_or(|own| *own == model.model_type)
            && self.num_hidden_layers.is_none_or(|own| own == model.num_hidden_layers)
            && self.vocab_size.is_none_or(|own| own == model.vocab_size)
        {
            return Ok(());
        }
        let name = self.name.as_deref().unwrap_or("a model");
        let (own, found) = (self.describe(), Self::of(model, name).describe());
        let advice = "use the adapter's own base model";
        let reason =
            format!("the adapter was made for {name} ({own}), this model is {found}; {advice}");
        Err(Error::Adapter { reason })
    }

    /// Checks that another adapter's base model can be the same.
    ///
    /// # Errors
    /// [`Error::Adapter`] with both sides.
    pub fn check_same(&self, other: &Self) -> Result<()> {
        fn differ<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> bool {
            a.zip(b).is_some_and(|(a, b)| a != b)
        }
        if self.hidden_size == other.hidden_size
            && !differ(self.model_type.as_ref(), other.model_type.as_ref())
            && !differ(self.num_hidden_layers.as_ref(), other.num_hidden_layers.as_ref())
            && !differ(self.vocab_size.as_ref(), other.vocab_size.as_ref())
        {
            return Ok(());
        }
        let (own, other) = (self.describe(), other.describe());
        let reason = format!(
            "the adapters belong to different base models, {other} and {own}; use adapters of one model"
        );
        Err(Error::Adapter { reason })
    }

    fn describe(&self) -> String {
        let family = self.model_type.as_deref().unwrap_or("unknown family");
        let mut text = format!("{family}, hidden size {}", self.hidden_size);
        if let Some(layers) = self.num_hidden_layers {
            text += &format!(", {layers} layers");
        }
        if let Some(vocab_size) = self.vocab_size {
            text += &format!(", vocabulary {vocab_size}");
        }
        text
    }
}
