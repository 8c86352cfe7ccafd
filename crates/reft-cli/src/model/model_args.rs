use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use reft_methods::load_adapters;
use reft_models::Adapter;

use crate::machine::MachineOptions;
use crate::model::adapter_directory::check_adapter_directory;
use crate::model::open_model::{Model, open_decoder};
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
