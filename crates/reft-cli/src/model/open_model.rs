use std::path::PathBuf;

use anyhow::{Context, Result};
use reft_models::{Adapter, AdapterStack, Decoder, DecoderConfig, Weights, resolve_model};

use crate::machine::MachineOptions;

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
    let device = machine.device.0.resolve()?;
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
