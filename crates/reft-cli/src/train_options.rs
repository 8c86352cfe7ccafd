//! The options of `reft train`: flags on the command line, fields in a configuration file.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use bytesize::ByteSize;
use clap::Args;
use reft_bench::TargetModules;
use reft_core::{Activation, MapKind, PositionRule, Positions};
use reft_models::Component;
use reft_train::{ScheduleKind, Shuffle, Template};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::layers::Layers;
use crate::machine::{DeviceChoice, KindChoice};
use crate::method_name::MethodName;

/// Every option that decides what a run does. A field of the file is called as the flag, with `_` for `-`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainOptions {
    /// Model: a Hugging Face directory, a GGUF file, or a hub name such as org/name
    #[arg(long, value_name = "DIR", help_heading = "Input and output")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Examples: JSONL or a JSON list of rows with prompt and completion, instruction and output, messages, or input_ids
    #[arg(long, value_name = "FILE", help_heading = "Input and output")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Directory to write: adapter, train.toml, metrics.jsonl, checkpoint; new or empty
    #[arg(long, value_name = "DIR", help_heading = "Input and output")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,
    /// Start from this adapter; what it is (method, layers, rank, …) holds
    #[arg(long, value_name = "DIR", help_heading = "Input and output")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_adapter: Option<PathBuf>,

    /// loreft, direft, direft-orth, noreft, consreft, lobireft; lora, rslora, dora, prefix, prompt, ia3, red, series-adapter,
    /// parallel-adapter, full; several at once as loreft+lora [default: loreft]
    #[arg(long, value_name = "METHOD", help_heading = "Method")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<MethodName>,
    /// Layers, counted from 0: all, 15, or 3;9;18 (ReFT, LoRA, RED, bottleneck) [default: all]
    #[arg(long, value_name = "LAYERS", help_heading = "Method")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
    /// Rank r: dimension of the subspace that ReFT edits, B·A of LoRA [default: 8]
    #[arg(long, value_name = "R", help_heading = "Method", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<i64>,
    /// Probability of dropout in training, on ReFT's edit or LoRA's input, 0 to below 1 [default: 0]
    #[arg(
        long,
        value_name = "P",
        help_heading = "Method",
        allow_negative_numbers = true,
        visible_alias = "lora-dropout"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// Start: identity or reference (ReFT; identity where the method has one), vocabulary or random (prompt; vocabulary)
    #[arg(long, value_name = "INIT", help_heading = "Method")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// Activation: of ReFT's learned source (linear), of bottleneck adapters (relu); gelu, silu, tanh, sigmoid
    #[arg(long, value_name = "NAME", help_heading = "Method")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act_fn: Option<Activation>,

    /// Where in a layer: block_input, attention_output, mlp_output or block_output [default: block_output]
    #[arg(long, value_name = "COMPONENT", help_heading = "Method: ReFT")]
    #[serde(with = "as_text", default, skip_serializing_if = "Option::is_none")]
    pub component: Option<Component>,
    /// Prompt tokens to edit, f7+l7 = first 7 and last 7 [default: f7+l7]
    #[arg(long, value_name = "POSITIONS", help_heading = "Method: ReFT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positions: Option<Positions>,
    /// What happens to prompts shorter than the positions: paper or pyreft [default: paper]
    #[arg(long, value_name = "RULE", help_heading = "Method: ReFT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position_rule: Option<PositionRule>,
    /// One intervention per layer for first and last tokens, not one for each [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true, help_heading = "Method: ReFT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_weights: Option<bool>,
    /// How the subspace is kept orthonormal: householder or qr [default: householder]
    #[arg(long, value_name = "MAP", help_heading = "Method: ReFT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orthonormal_map: Option<MapKind>,
    /// Give the projection of noreft a bias [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true, help_heading = "Method: ReFT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_bias: Option<bool>,

    /// LoRA: alpha of scaling = alpha / rank [default: twice the rank]
    #[arg(
        long,
        value_name = "X",
        help_heading = "Method: LoRA and (IA)³",
        allow_negative_numbers = true,
        visible_alias = "lora-alpha"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Projections, as q_proj,v_proj, a regular expression, or all-linear [default: all seven; (IA)³: k_proj,v_proj,down_proj]
    #[arg(long, value_name = "MODULES", help_heading = "Method: LoRA and (IA)³")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_modules: Option<TargetModules>,
    /// (IA)³: those of them whose input is rescaled [default: down_proj]
    #[arg(long, value_name = "MODULES", help_heading = "Method: LoRA and (IA)³")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feedforward_modules: Option<TargetModules>,

    /// Number of virtual tokens [default: 20]
    #[arg(
        long,
        value_name = "N",
        help_heading = "Method: prefix and prompt",
        allow_negative_numbers = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_virtual_tokens: Option<i64>,
    /// Start from this text, repeated or cut to the number of virtual tokens
    #[arg(long, value_name = "TEXT", help_heading = "Method: prefix and prompt")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_text: Option<String>,
    /// Start from these token ids, as 12,7,99
    #[arg(
        long,
        value_name = "IDS",
        help_heading = "Method: prefix and prompt",
        value_delimiter = ','
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_tokens: Option<Vec<i64>>,
    /// Prefix: inner size of an MLP that makes the prefix while it trains [default: none]
    #[arg(
        long,
        value_name = "N",
        help_heading = "Method: prefix and prompt",
        allow_negative_numbers = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_hidden_size: Option<i64>,

    /// Where in a layer: mlp_output, block_output (RED), attention_output (bottleneck) [default: mlp_output]
    #[arg(
        long,
        value_name = "COMPONENTS",
        help_heading = "Method: RED and bottleneck adapters",
        value_delimiter = ','
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub components: Option<Vec<String>>,
    /// Bottleneck adapters: inner size [default: 64]
    #[arg(
        long,
        value_name = "N",
        help_heading = "Method: RED and bottleneck adapters",
        allow_negative_numbers = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bottleneck_size: Option<i64>,

    /// How a row becomes text: auto, chat, alpaca or plain [default: auto = as the row's form suggests]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
    /// Longest example in tokens; what is longer is cut at its end [default: 512]
    #[arg(long, value_name = "N", help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// Leave out examples that have no label left when they are cut, instead of failing [default: false]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        help_heading = "Data"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_too_long: Option<bool>,
    /// Examples held out to choose the best adapter by: a share below 1, or a number [default: 0]
    #[arg(long, value_name = "X", help_heading = "Data", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<f64>,
    /// Order of the examples: length (shuffled, like lengths together), plain or none [default: length]
    #[arg(long, value_name = "ORDER", help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shuffle: Option<Shuffle>,
    /// Take the examples in the order of the file: the same as --shuffle none
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true, help_heading = "Data", conflicts_with = "shuffle")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_shuffle: Option<bool>,

    /// Passes over the data [default: 3, without --max-steps]
    #[arg(long, value_name = "N", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Optimizer steps, however many passes they are
    #[arg(long, value_name = "N", help_heading = "Training", conflicts_with = "epochs")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<usize>,
    /// Examples of a micro-batch [default: 8]
    #[arg(long, value_name = "N", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    /// Micro-batches of an optimizer step [default: 1]
    #[arg(long, value_name = "N", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_accum: Option<usize>,
    /// Highest learning rate of AdamW [default: 1e-3]
    #[arg(long, value_name = "X", help_heading = "Training", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Learning rate of ReFT's rotations, as a multiple of --lr [default: 1]
    #[arg(long, value_name = "X", help_heading = "Training", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation_lr_factor: Option<f64>,
    /// How the learning rate falls: linear, cosine or constant [default: linear]
    #[arg(long, value_name = "NAME", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleKind>,
    /// Share of the steps in which the learning rate rises, 0 to 1 [default: 0]
    #[arg(long, value_name = "X", help_heading = "Training", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
    /// Decoupled weight decay; rotations are exempt [default: 0]
    #[arg(long, value_name = "X", help_heading = "Training", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Largest norm of all gradients together; 0 = not clipped [default: 1]
    #[arg(long, value_name = "X", help_heading = "Training", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<f64>,
    /// Seed of everything random: start, order, split, dropout [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Steps between validations; 0 = after every epoch [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_every: Option<usize>,
    /// Steps between checkpoints; 0 = only at the end or when interrupted [default: 100]
    #[arg(long, value_name = "N", help_heading = "Training")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<usize>,

    /// Kind of the frozen model's numbers: f32, bf16 or f16; edits are always f32 [default: f32]
    #[arg(long, value_name = "KIND", help_heading = "Machine")]
    #[serde(with = "as_text", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<KindChoice>,
    /// Where to compute: auto, cpu or cuda:N [default: auto = the first GPU if there is one]
    #[arg(long, value_name = "DEVICE", help_heading = "Machine")]
    #[serde(with = "as_text", default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceChoice>,
    /// CPU threads to compute with [default: one per core]
    #[arg(long, value_name = "N", help_heading = "Machine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Keep only what goes into each block and compute its activations again in the backward: less memory [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true, help_heading = "Machine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_activations: Option<bool>,
    /// Compute the frozen model's part of an example in every step, instead of once [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true, help_heading = "Machine")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_reuse: Option<bool>,
    /// Memory for the frozen model's part of examples, as 4GB or 512MiB [default: half of what is available]
    #[arg(long, value_name = "SIZE", help_heading = "Machine", conflicts_with = "no_reuse")]
    #[serde(with = "as_text", default, skip_serializing_if = "Option::is_none")]
    pub reuse_memory: Option<ByteSize>,
    /// Directory for a file with what does not fit into that memory [default: it is computed again]
    #[arg(long, value_name = "DIR", help_heading = "Machine", conflicts_with = "no_reuse")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reuse_dir: Option<PathBuf>,
}

/// Serde for what is written as it is given on the command line.
mod as_text {
    use super::*;

    pub fn serialize<T: Display, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().map(T::to_string).serialize(serializer)
    }

    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?.parse().map(Some).map_err(serde::de::Error::custom)
    }
}
