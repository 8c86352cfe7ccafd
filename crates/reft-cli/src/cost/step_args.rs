use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_bench::{FLOOR, TimingCase};
use reft_models::{ModelDescription, resolve_model};

use crate::machine::MachineOptions;
use crate::options::{Flags, MethodFlags};

/// A training step: a model, the edits of a method, a batch, and how the step is computed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct StepArgs {
    /// Model: a Hugging Face directory, a GGUF file, or a hub name such as org/name
    #[arg(long, value_name = "DIR", required_unless_present = "model_config")]
    pub model: Option<String>,
    /// Use the model shape of this config.json, without any weights file
    #[arg(long, value_name = "FILE.json", conflicts_with = "model")]
    pub model_config: Option<PathBuf>,

    /// Rows of a batch
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Batch")]
    pub batch_size: usize,
    /// Prompt tokens of a row
    #[arg(long, value_name = "N", default_value_t = 120, help_heading = "Batch")]
    pub prompt_length: usize,
    /// Tokens of a row after the prompt, all of them labels
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Batch")]
    pub response_length: usize,

    /// Compute the frozen model's activations for each row in every step, without a cache
    #[arg(long, help_heading = "Step")]
    pub no_reuse: bool,
    /// Keep only each block's input and recompute its activations in the backward (always on with packed
    /// weights)
    #[arg(long, help_heading = "Step")]
    pub checkpoint_activations: bool,
    #[command(flatten)]
    pub machine: Flags<MachineOptions>,

    #[command(flatten)]
    pub options: Flags<MethodFlags>,
}

impl StepArgs {
    /// A step of the frozen floor, to which the caller adds a method, and the model, read without its weights.
    pub fn case(&self) -> Result<(TimingCase, ModelDescription)> {
        let (model, name) = match (&self.model, &self.model_config) {
            (Some(model), None) => (resolve_model(model)?, model.clone()),
            (None, Some(file)) => (file.clone(), file.display().to_string()),
            _ => bail!("--model or --model-config is needed, and not both"),
        };
        let case = TimingCase {
            model,
            random_weights: self.model_config.is_some(),
            kind: self.machine.0.kind.resolve(&self.machine.0.device.resolve()?),
            weights: self.machine.0.weights,
            int8_products: self.machine.0.int8_products,
            method: FLOOR.to_owned(),
            options: self.options.0.0.clone(),
            batch_size: self.batch_size,
            prompt_length: self.prompt_length,
            response_length: self.response_length,
            steps: 1,
            reuse: !self.no_reuse,
            checkpoint_activations: self.checkpoint_activations,
            new_tokens: 0,
        };
        let config = case.model_config().with_context(|| format!("cannot load model {name}"))?;
        Ok((case, config.describe()))
    }
}
