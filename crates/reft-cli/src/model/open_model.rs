use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use reft_methods::load_adapters;
use reft_models::{Adapter, AdapterStack, Decoder, DecoderConfig, Weights, resolve_model};

use crate::machine::MachineOptions;
use crate::model::adapter_directory::check_adapter_directory;
use crate::options::Flags;

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
    #[command(flatten)]
    machine: Flags<MachineOptions>,
}

impl ModelArgs {
    /// Loads the model and its adapters.
    ///
    /// # Errors
    /// If one of them is not there or broken, or an adapter belongs to another model.
    pub fn open(&self) -> Result<Model> {
        self.machine.0.set_up()?;
        let (path, decoder) = open_decoder(&self.model, &self.machine.0)?;
        let mut adapters: Vec<Box<dyn Adapter>> = Vec::new();
        for dir in &self.adapter {
            let load = || {
                check_adapter_directory(dir)?;
                Ok::<_, anyhow::Error>(load_adapters(dir, &decoder)?)
            };
            adapters.extend(load().with_context(|| {
                format!("cannot run adapter {} on {}", dir.display(), self.model)
            })?);
        }
        Ok(Model { path, decoder, adapters })
    }
}

/// A model with its adapters.
pub struct Model {
    /// Directory or file that it was read from.
    pub path: PathBuf,
    /// The frozen model.
    pub decoder: Decoder,
    /// The adapters, in the order given.
    pub adapters: Vec<Box<dyn Adapter>>,
}

impl Model {
    /// The adapters together.
    ///
    /// # Errors
    /// If they cannot be used at once.
    pub fn stack(&self) -> Result<AdapterStack<'_>> {
        Ok(AdapterStack::of_boxed(&self.adapters)?)
    }
}

/// Finds and loads a model.
///
/// # Errors
/// If it is not there or broken.
pub fn open_decoder(model: &str, machine: &MachineOptions) -> Result<(PathBuf, Decoder)> {
    let device = machine.device.resolve()?;
    let path = resolve_model(model)?;
    let decoder = DecoderConfig::open(&path)
        .and_then(|config| {
            let weights = Weights::open(&path)?.held_as(machine.weights);
            Decoder::from_weights(config, &weights, machine.kind.kind(), device)
        })
        .with_context(|| format!("cannot load model {model}"))?;
    Ok((path, decoder))
}

/// The configuration of a model, read without its weights.
///
/// # Errors
/// If it is not there or broken.
pub fn open_config(model: &str) -> Result<(PathBuf, DecoderConfig)> {
    let path = resolve_model(model)?;
    let config =
        DecoderConfig::open(&path).with_context(|| format!("cannot load model {model}"))?;
    Ok((path, config))
}
