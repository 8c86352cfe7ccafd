//! The model and the adapters that a command runs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_bench::AdapterKind;
use reft_models::{
    Adapter, ChatTemplate, Decoder, DecoderConfig, ReftConfig, Tokenizer, WeightStorage, Weights,
    resolve_model,
};

use crate::machine::{DeviceChoice, KindChoice, set_tf32, set_threads};

/// The flags of every command that runs a model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Model: a Hugging Face directory, a GGUF file, or a hub name such as org/name
    #[arg(long, value_name = "DIR")]
    model: String,
    /// Adapter directory; give it several times to use several at once, in this order
    #[arg(long, value_name = "DIR")]
    adapter: Vec<PathBuf>,
    /// Kind of the model's numbers: f32, bf16 or f16 [default: f32]
    #[arg(long, value_name = "KIND", default_value_t, hide_default_value = true)]
    kind: KindChoice,
    /// How its matrices are held: dense, as-stored (GGUF's blocks stay packed), int8 or int4; packed ones are expanded when they are
    /// computed with [default: dense]
    #[arg(long, value_name = "FORM", default_value_t, hide_default_value = true)]
    weights: WeightStorage,
    /// Where to compute: auto, cpu or cuda:N [default: auto = the first GPU if there is one]
    #[arg(long, value_name = "DEVICE", default_value_t, hide_default_value = true)]
    device: DeviceChoice,
    /// On a GPU: f32 products on TF32 units, faster and to three digits
    #[arg(long)]
    tf32: bool,
    /// CPU threads to compute with [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// A model with its adapters.
pub struct Model {
    /// Directory or file that it was read from.
    pub path: PathBuf,
    /// The frozen model.
    pub decoder: Decoder,
    adapters: Vec<Box<dyn Adapter>>,
}

impl ModelArgs {
    /// Loads the model and its adapters.
    ///
    /// # Errors
    /// If one of them is not there or broken, or an adapter belongs to another model.
    pub fn open(&self) -> Result<Model> {
        set_threads(self.threads)?;
        set_tf32(self.tf32)?;
        let (path, decoder) = open_decoder(&self.model, self.kind, self.weights, self.device)?;
        let load = |dir: &PathBuf| {
            load_adapter(dir, &decoder)
                .with_context(|| format!("cannot run adapter {} on {}", dir.display(), self.model))
        };
        let adapters = self.adapter.iter().map(load).collect::<Result<_>>()?;
        Ok(Model { path, decoder, adapters })
    }
}

impl Model {
    /// The same with one more adapter.
    pub fn with_adapter(mut self, adapter: Box<dyn Adapter>) -> Self {
        self.adapters.push(adapter);
        self
    }

    /// The adapters, in the order given.
    pub fn adapters(&self) -> Vec<&dyn Adapter> {
        self.adapters.iter().map(Box::as_ref).collect()
    }
}

/// Finds and loads a model.
///
/// # Errors
/// If it is not there or broken.
pub fn open_decoder(
    model: &str,
    kind: KindChoice,
    storage: WeightStorage,
    device: DeviceChoice,
) -> Result<(PathBuf, Decoder)> {
    let device = device.resolve()?;
    let path = resolve_model(model)?;
    let decoder = DecoderConfig::open(&path)
        .and_then(|config| {
            let weights = Weights::open(&path)?.held_as(storage);
            Decoder::from_weights(config, &weights, kind.0, device)
        })
        .with_context(|| format!("cannot load model {model}"))?;
    Ok((path, decoder))
}

/// The tokenizer of a model, if it has one.
///
/// # Errors
/// If it is broken.
pub fn open_tokenizer(model: &Path) -> Result<Option<Tokenizer>> {
    if model.is_dir() && !model.join("tokenizer.json").exists() {
        return Ok(None);
    }
    Ok(Some(Tokenizer::open(model)?))
}

/// The chat template of a model, if it has one.
///
/// # Errors
/// If it is broken.
pub fn open_chat_template(model: &Path) -> Result<Option<ChatTemplate>> {
    match ChatTemplate::open(model) {
        Ok(template) => Ok(Some(template)),
        Err(reft_models::Error::NoChatTemplate { .. }) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

/// Reads an adapter of any method for a model.
///
/// # Errors
/// If it is none, broken, or made for another model.
fn load_adapter(dir: &Path, decoder: &Decoder) -> Result<Box<dyn Adapter>> {
    check_adapter_directory(dir)?;
    Ok(reft_bench::load_adapter(dir, decoder)?)
}

/// Checks by its files that a directory holds an adapter, and says what it holds instead.
///
/// # Errors
/// If it does not.
pub fn check_adapter_directory(dir: &Path) -> Result<()> {
    let Err(refused) = AdapterKind::of(dir) else { return Ok(()) };
    let name = dir.display();
    if !dir.is_dir() {
        bail!(
            "{name} is no directory; expected an adapter directory with {} or {}",
            ReftConfig::FILE_NAME,
            "adapter_config.json"
        );
    }
    let files = std::fs::read_dir(dir).with_context(|| format!("cannot read {name}"))?;
    let names: Vec<String> =
        files.flatten().map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    if names.iter().any(|name| name.starts_with("intkey_")) {
        bail!(
            "{name} holds no {}; it looks like one saved by pyreft: turn it into one of ours with `reft import --from pyreft`",
            ReftConfig::FILE_NAME
        );
    }
    if names.iter().any(|name| name == "checkpoint") {
        bail!(
            "{name} holds no adapter, but an unfinished training run: finish it with `reft train --resume`"
        );
    }
    Err(refused.into())
}
