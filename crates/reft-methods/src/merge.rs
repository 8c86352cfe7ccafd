use std::collections::HashMap;
use std::path::Path;

use reft_models::{
    Model, Weight, atomic_directory, decoder_config, io_error, save_weights, write_json,
};
use tch::{Tensor, no_grad};

use crate::{Error, Result};

/// A model's weights by name, which the merged adapter changes in place.
pub(crate) struct MergedWeights(HashMap<String, Tensor>);

impl MergedWeights {
    pub(crate) fn of(model: &dyn Model) -> Result<Self> {
        Ok(Self(weight_tensors(model)?.into_iter().collect()))
    }

    /// Replaces a weight by `merged` of it, rounded to its kind.
    pub(crate) fn change(&self, name: &str, merged: impl FnOnce(&Tensor) -> Tensor) -> Result<()> {
        let Some(weight) = self.0.get(name) else {
            let reason = format!("the model has no {name} to merge into");
            return Err(reft_models::Error::Adapter { reason }.into());
        };
        no_grad(|| {
            let merged = merged(weight).to_kind(weight.kind());
            if !bool::try_from(merged.isfinite().all()).map_err(reft_models::Error::from)? {
                return Err(Error::NotFinite { name: name.to_owned() });
            }
            weight.shallow_clone().copy_(&merged);
            Ok(())
        })
    }

    /// [`Self::change`] of a module's bias, if it has one.
    pub(crate) fn change_bias(
        &self,
        module: &str,
        merged: impl FnOnce(&Tensor) -> Tensor,
    ) -> Result<()> {
        let bias = format!("{module}.bias");
        if self.0.contains_key(&bias) { self.change(&bias, merged) } else { Ok(()) }
    }
}

/// The weights of a model, to be changed in place.
///
/// # Errors
/// [`reft_models::Error::Adapter`] if one is quantised.
pub(crate) fn weight_tensors(model: &dyn Model) -> reft_models::Result<Vec<(String, Tensor)>> {
    model.weights().into_iter().map(dense).collect()
}

/// A weight as a tensor, to be changed.
///
/// # Errors
/// [`reft_models::Error::Adapter`] if it is quantised.
pub(crate) fn dense((name, weight): (String, Weight)) -> reft_models::Result<(String, Tensor)> {
    match weight {
        Weight::Dense(tensor) => Ok((name, tensor)),
        Weight::Quantised(_) => Err(reft_models::Error::Adapter {
            reason: format!(
                "{name} is quantised, and its numbers cannot be changed; hold the weights as tensors (dense)"
            ),
        }),
    }
}

const CONFIG: &str = "config.json";

/// Files of a model directory that are not weights.
const MODEL_FILES: [&str; 10] = [
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];

/// A folder of further chat templates in a model directory.
const TEMPLATES: &str = "additional_chat_templates";

/// In the metadata of an exported model: the method of the adapter that was merged.
pub const MERGED_ADAPTER: &str = "merged_adapter";
/// In the metadata of an exported model: the model that an adapter was merged into.
pub const MERGED_BASE_MODEL: &str = "merged_base_model";

/// Writes the model, merged or trained in full, as a model directory: its weights, and the other files of `base`.
///
/// `facts` are kept in the metadata of the weights, for instance [`MERGED_ADAPTER`]; `largest` is the size of a file of weights in bytes, at
/// most, as [`save_weights`] takes it.
///
/// # Errors
/// [`reft_models::Error::OutputExists`] if `output` is there already, or a file cannot be read or written.
pub fn export_model(
    model: &dyn Model,
    base: &Path,
    output: &Path,
    facts: &[(&str, String)],
    largest: u64,
) -> Result<()> {
    Ok(atomic_directory(output, |dir| {
        let weights = model.weights().into_iter();
        let weights = weights.map(|(name, weight)| (name, weight.dense().detach()));
        save_weights(dir, &weights.collect::<Vec<_>>(), facts, largest)?;
        let copy = |name: &Path| -> reft_models::Result<()> {
            let (file, copy) = (base.join(name), dir.join(name));
            let content = std::fs::read(&file).map_err(io_error("read", &file))?;
            std::fs::write(&copy, content).map_err(io_error("write", &copy))
        };
        for name in MODEL_FILES.into_iter().filter(|name| base.join(name).is_file()) {
            copy(Path::new(name))?;
        }
        if let Ok(templates) = std::fs::read_dir(base.join(TEMPLATES)) {
            let folder = dir.join(TEMPLATES);
            std::fs::create_dir(&folder).map_err(io_error("create", &folder))?;
            for template in templates.flatten() {
                copy(&Path::new(TEMPLATES).join(template.file_name()))?;
            }
        }
        // of a multimodal model, only the decoder is written
        let config = Some(base.join(CONFIG)).filter(|config| config.is_file());
        if let Some(own) = config.map(|config| decoder_config(&config)).transpose()?.flatten() {
            write_json(&dir.join(CONFIG), &own)?;
        }
        Ok::<_, reft_models::Error>(())
    })?)
}
