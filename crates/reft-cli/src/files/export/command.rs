use std::path::PathBuf;

use anyhow::Result;
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use reft_methods::{METHODS, Merging};
use reft_models::GgufKind;

use super::{adapter, model};

/// Write an adapter or a model in a form that other programs read
///
/// With --merge the adapter is merged into the weights, and the output is a Hugging Face directory. It computes the same as the model with
/// the adapter, at the cost of the model alone. Methods that edit hidden states or add tokens change no weights, and are refused.
///
/// With --to the output is in the form of another program. `pyreft` takes the edits of ReFT, and adds a README.md that says how to load them
/// and where they act. `peft` takes the methods that PEFT has. `gguf` is one file for llama.cpp: a model, or with --merge a model and its
/// adapter. `control-vector` is a file for llama.cpp's --control-vector: the vectors that an adapter adds to the outputs of blocks.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  reft export --merge --model models/SmolLM2-135M-Instruct --adapter runs/lora --output models/merged
  reft generate --model models/merged --chat --prompt 'Who are you?'
  reft export --to gguf --merge --model models/SmolLM2-135M-Instruct --adapter runs/lora --kind q8_0 --output merged.gguf
  reft export --to pyreft --adapter runs/loreft --output for-pyreft
  reft export --to peft --adapter runs/lora --output for-peft
  reft export --to control-vector --adapter directions/happy --output happy.gguf")]
pub struct ExportArgs {
    /// Form to write: pyreft, peft or control-vector for an adapter, gguf for a model
    #[arg(long, value_name = "FORM", hide_possible_values = true)]
    pub(super) to: Option<Form>,
    #[arg(long, required_unless_present = "to", help = merge_help())]
    pub(super) merge: bool,
    /// Model: a Hugging Face directory, or a hub name such as org/name
    #[arg(long, value_name = "DIR")]
    pub(super) model: Option<String>,
    /// Adapter: a directory, or a hub name such as org/name
    #[arg(long, value_name = "DIR")]
    pub(super) adapter: Option<PathBuf>,
    /// Directory to write, new or empty; with --to gguf or control-vector, a file that does not exist
    #[arg(long, value_name = "PATH")]
    pub(super) output: PathBuf,
    /// Kind of the written weights: f32, bf16 or f16, in a GGUF file also q8_0 [default: the model's own]
    ///
    /// Sums are computed in f32 and rounded once.
    #[arg(long, value_name = "KIND")]
    pub(super) kind: Option<GgufKind>,
    /// Largest weights file; a larger model becomes several files with an index [default: 5GB]
    #[arg(long, value_name = "SIZE")]
    pub(super) shard_size: Option<ByteSize>,
    /// CPU threads to compute with [default: one per core]
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<usize>,
    /// Print the result as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// The form of another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Form {
    /// A directory as pyreft's `save` writes it.
    Pyreft,
    /// A directory as PEFT's `save_pretrained` writes it.
    Peft,
    /// A file that llama.cpp reads.
    Gguf,
    /// A control vector of llama.cpp.
    ControlVector,
}

fn merge_help() -> String {
    let can = METHODS.iter().filter(|method| method.merging == Merging::IntoWeights);
    let names: Vec<&str> = can.map(|method| method.name).collect();
    format!("Merge the adapter into the weights; these methods can be: {}", names.join(", "))
}

/// Runs the command.
pub fn run(args: &ExportArgs) -> Result<()> {
    match args.to {
        Some(Form::Pyreft) => adapter::to_pyreft(args),
        Some(Form::Peft) => adapter::to_peft(args),
        Some(Form::Gguf) => model::to_gguf(args),
        Some(Form::ControlVector) => adapter::to_control_vector(args),
        None => model::to_directory(args),
    }
}
