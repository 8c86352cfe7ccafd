use std::collections::HashMap;
use std::path::Path;

use reft_models::{Decoder, atomic_directory, save_safetensors};
use tch::{Tensor, no_grad};

use crate::error::{Error, Result};
use crate::full::{FullAdapter, weight_tensors};
use crate::ia3::Ia3Adapter;
use crate::lora::LoraAdapter;
use crate::method_description::adapter_options;
use crate::registry::AdapterKind;

/// Puts a LoRA or DoRA adapter into the decoder's weights: `W ← W + s B A`, or DoRA's `W ← m ⊙ (W + s B A) / ‖W + s B A‖`.
///
/// The merged decoder computes what base model and adapter do, at the base model's cost. The sum is made in f32 and rounded to the
/// model's kind once.
///
/// # Errors
/// [`Error::NotFinite`]: the decoder is merged in part then, and should be opened anew.
pub fn merge_lora(decoder: &Decoder, adapter: &LoraAdapter) -> Result<()> {
    let weights = Weights::of(decoder)?;
    adapter.layers().try_for_each(|layer| {
        weights.change(&format!("{}.weight", layer.module), |weight| layer.merged(weight))
    })
}

/// Puts an (IA)³ adapter into the decoder's weights and biases: rows, or columns of feed-forward modules, times their factors.
///
/// # Errors
/// As [`merge_lora`].
pub fn merge_ia3(decoder: &Decoder, adapter: &Ia3Adapter) -> Result<()> {
    let weights = Weights::of(decoder)?;
    for factor in adapter.factors() {
        weights.change(&format!("{}.weight", factor.module), |weight| factor.merged(weight))?;
        let bias = format!("{}.bias", factor.module);
        if weights.0.contains_key(&bias) {
            weights.change(&bias, |bias| factor.merged_bias(bias))?;
        }
    }
    Ok(())
}

/// Puts an adapter directory into the decoder's weights.
///
/// # Errors
/// What reading it refuses; [`Error::NotMergeable`] for methods that are no change of weights; [`Error::NotFinite`].
pub fn merge_adapter(dir: &Path, decoder: &Decoder) -> Result<()> {
    check_mergeable(dir)?;
    match AdapterKind::of(dir)? {
        AdapterKind::Lora => merge_lora(decoder, &LoraAdapter::load(dir, decoder)?),
        AdapterKind::Ia3 => merge_ia3(decoder, &Ia3Adapter::load(dir, decoder)?),
        AdapterKind::Full => Ok(FullAdapter::load(dir, decoder).map(drop)?),
        _ => Ok(()),
    }
}

/// Checks that the adapter in a directory is a change of weights, before a model is loaded for it.
///
/// # Errors
/// [`Error::NotMergeable`]; what reading its configuration refuses.
pub fn check_mergeable(dir: &Path) -> Result<()> {
    let reason = match AdapterKind::of(dir)? {
        AdapterKind::Lora | AdapterKind::Ia3 | AdapterKind::Full => return Ok(()),
        AdapterKind::Reft => "it edits hidden states of the prompt and leaves those of the reply",
        AdapterKind::Prefix => "its keys and values stand before those that the weights make",
        AdapterKind::Prompt => "its embeddings stand before the prompt's own",
        AdapterKind::Red => {
            "it scales and shifts hidden states, and the blocks have no bias for it"
        }
        AdapterKind::Bottleneck => "it is an MLP of its own, with an activation inside",
        AdapterKind::Combined => "it is several adapters; merge those of its directories that can",
    };
    let (what, path) = (adapter_options(dir)?.0, dir.to_owned());
    Err(Error::NotMergeable { path, what, reason })
}

/// Files of a model directory that are not weights.
const MODEL_FILES: [&str; 10] = [
    "config.json",
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

/// In the metadata of an exported model: the method of the adapter that was merged.
pub const MERGED_ADAPTER: &str = "merged_adapter";
/// In the metadata of an exported model: the model that an adapter was merged into.
pub const MERGED_BASE_MODEL: &str = "merged_base_model";

/// Writes the decoder, merged or trained in full, as a model directory: its weights, and the other files of `base`.
///
/// `facts` are kept in the metadata of the weights' file, for instance [`MERGED_ADAPTER`].
///
/// # Errors
/// [`reft_models::Error::OutputExists`] if `output` is there already, or a file cannot be read or written.
pub fn export_model(
    decoder: &Decoder,
    base: &Path,
    output: &Path,
    facts: &[(&str, String)],
) -> Result<()> {
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| reft_models::Error::Io { action, path, source }
    };
    Ok(atomic_directory(output, |dir| {
        let weights = decoder.weights().into_iter();
        let weights = weights.map(|(name, weight)| (name, weight.dense().detach()));
        let mut metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        metadata.extend(facts.iter().map(|(name, fact)| ((*name).to_owned(), fact.clone())));
        let weights: Vec<_> = weights.collect();
        save_safetensors(&dir.join(FullAdapter::FILE_NAME), &weights, Some(metadata))?;
        for name in MODEL_FILES {
            let file = base.join(name);
            if file.is_file() {
                let content = std::fs::read(&file).map_err(io("read", &file))?;
                let copy = dir.join(name);
                std::fs::write(&copy, content).map_err(io("write", &copy))?;
            }
        }
        Ok::<_, reft_models::Error>(())
    })?)
}

/// A decoder's weights by name, to be changed in place.
struct Weights(HashMap<String, Tensor>);

impl Weights {
    fn of(decoder: &Decoder) -> Result<Self> {
        Ok(Self(weight_tensors(decoder)?.into_iter().collect()))
    }

    fn change(&self, name: &str, merged: impl FnOnce(&Tensor) -> Tensor) -> Result<()> {
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
}
