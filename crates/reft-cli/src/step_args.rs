//! What a training step of some shape is: flags that `reft bench` and `reft plan` have in common.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_bench::{FLOOR, MethodOptions, Precision, TargetModules, TimingCase};
use reft_core::Positions;
use reft_models::{Component, DecoderConfig, WeightStorage, resolve_model};
use tch::Kind;

use crate::layers::Layers;
use crate::machine::{DeviceChoice, KindChoice};

/// A model, what a method edits in it, a batch, and how a step is computed.
#[derive(Debug, Args)]
pub struct StepArgs {
    /// Model: a Hugging Face directory, a GGUF file, or a hub name such as org/name
    #[arg(
        long,
        value_name = "DIR",
        help_heading = "Model",
        required_unless_present = "model_config"
    )]
    pub model: Option<String>,
    /// A config.json: a model of this shape, without a download
    #[arg(long, value_name = "FILE.json", help_heading = "Model", conflicts_with = "model")]
    pub model_config: Option<PathBuf>,
    /// Kind of the frozen model's numbers: f32, bf16 or f16 [default: f32]
    #[arg(
        long,
        value_name = "KIND",
        default_value_t,
        hide_default_value = true,
        help_heading = "Model"
    )]
    pub kind: KindChoice,
    /// How its matrices are held: dense, as-stored (GGUF's blocks stay packed), int8 or int4 [default: dense]
    #[arg(
        long,
        value_name = "FORM",
        default_value_t,
        hide_default_value = true,
        help_heading = "Model"
    )]
    pub weights: WeightStorage,

    /// Layers, counted from 0: all, 15, or 3;9;18 [default: all]
    #[arg(long, value_name = "LAYERS", help_heading = "Method")]
    pub layers: Option<Layers>,
    /// Rank r: dimension of the subspace that ReFT edits, B·A of LoRA [default: 8]
    #[arg(long, value_name = "R", allow_negative_numbers = true, help_heading = "Method")]
    pub rank: Option<i64>,
    /// ReFT: prompt tokens to edit, f7+l7 = first 7 and last 7 [default: f7+l7]
    #[arg(long, value_name = "POSITIONS", help_heading = "Method")]
    pub positions: Option<Positions>,
    /// ReFT: one intervention per layer for first and last tokens, not one for each [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", default_value = "false", hide_default_value = true, require_equals = true, help_heading = "Method")]
    pub share_weights: bool,
    /// ReFT: block_input, attention_output, mlp_output or block_output [default: block_output]
    #[arg(long, value_name = "COMPONENT", help_heading = "Method")]
    pub component: Option<Component>,
    /// LoRA and (IA)³: projections, as q_proj,v_proj or all-linear [default: all seven; (IA)³: k_proj,v_proj,down_proj]
    #[arg(long, value_name = "MODULES", help_heading = "Method")]
    pub target_modules: Option<TargetModules>,
    /// Prefix and prompt: number of virtual tokens [default: 20]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Method")]
    pub n_virtual_tokens: Option<i64>,

    /// Rows of a batch
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Batch")]
    pub batch_size: usize,
    /// Prompt tokens of a row
    #[arg(long, value_name = "N", default_value_t = 120, help_heading = "Batch")]
    pub prompt_length: usize,
    /// Tokens of a row after the prompt, all of them labels
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Batch")]
    pub response_length: usize,

    /// Compute the frozen model's part of a row in every step
    #[arg(long, help_heading = "Step")]
    pub no_reuse: bool,
    /// Keep only what goes into each block and compute its activations again in the backward; so it is always with packed weights
    #[arg(long, help_heading = "Step")]
    pub checkpoint_activations: bool,
    /// Where to compute: auto, cpu or cuda:N [default: auto = the first GPU if there is one]
    #[arg(
        long,
        value_name = "DEVICE",
        default_value_t,
        hide_default_value = true,
        help_heading = "Step"
    )]
    pub device: DeviceChoice,
    /// On a GPU: f32 products on TF32 units, faster and to three digits
    #[arg(long, help_heading = "Step")]
    pub tf32: bool,
    /// CPU threads to compute with [default: one per core]
    #[arg(long, value_name = "N", help_heading = "Step")]
    pub threads: Option<usize>,
}

impl StepArgs {
    /// A step of the frozen floor, to be given a method, and the model's shape, read without its weights.
    pub fn case(&self) -> Result<(TimingCase, DecoderConfig)> {
        let (model, name) = match (&self.model, &self.model_config) {
            (Some(model), None) => (resolve_model(model)?, model.clone()),
            (None, Some(file)) => (file.clone(), file.display().to_string()),
            _ => bail!("--model or --model-config is needed, and not both"),
        };
        let mut case = TimingCase {
            model,
            random_weights: self.model_config.is_some(),
            kind: precision(self.kind),
            weights: self.weights,
            method: FLOOR.to_owned(),
            options: MethodOptions::default(),
            batch_size: self.batch_size,
            prompt_length: self.prompt_length,
            response_length: self.response_length,
            steps: 1,
            reuse: !self.no_reuse,
            checkpoint_activations: self.checkpoint_activations,
            new_tokens: 0,
        };
        let shape = case.model_config().with_context(|| format!("cannot load model {name}"))?;
        let layers = self.layers.as_ref();
        case.options = MethodOptions {
            layers: layers.map(|layers| layers.of_model(shape.num_hidden_layers)).transpose()?,
            rank: self.rank,
            positions: self.positions,
            share_weights: Some(self.share_weights),
            component: self.component.map(|component| component.to_string()),
            target_modules: self.target_modules.clone(),
            n_virtual_tokens: self.n_virtual_tokens,
            ..MethodOptions::default()
        };
        Ok((case, shape))
    }
}

fn precision(kind: KindChoice) -> Precision {
    match kind.0 {
        Kind::BFloat16 => Precision::Bf16,
        Kind::Half => Precision::F16,
        _ => Precision::F32,
    }
}
