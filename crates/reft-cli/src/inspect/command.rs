use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use reft_methods::{AdapterFiles, adapters_in};
use reft_models::resolve_model;

use crate::inspect::{adapter, model};
use crate::model::is_saved_by_pyreft;
use crate::terminal::output;

/// Show what an adapter or a model is: method, sites, parameters, sizes
///
/// Files are checked as they are before use: a missing or misshapen tensor is an error.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  reft inspect runs/emoji
  reft inspect runs/lora --model models/SmolLM2-135M-Instruct
  reft inspect models/SmolLM2-135M-Instruct --json")]
pub struct InspectArgs {
    /// Adapter directory, model directory, GGUF file, or hub name
    #[arg(value_name = "DIR|FILE")]
    path: PathBuf,
    /// Base model of the adapter, for its trainable share [default: the model that the adapter names, if found]
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &InspectArgs) -> Result<()> {
    let path = &args.path;
    let is_model = |path: &Path| path.is_file() || path.join("config.json").is_file();
    // full fine-tuning writes the weight files of a model; config.json then tells a model's directory from an adapter's
    let is_adapter = adapters_in(path)
        .is_ok_and(|adapters| adapters.iter().all(|(_, m)| m.files != AdapterFiles::Weights));
    let described = if !is_adapter && !path.exists() {
        model::describe(&resolve_model(&path.to_string_lossy())?)
    } else if !is_adapter && is_model(path) && !is_saved_by_pyreft(path) {
        model::describe(path)
    } else {
        adapter::describe(path, args.model.as_deref())
    };
    let (rows, json) = described.with_context(|| format!("cannot inspect {}", path.display()))?;
    output::result(args.json, &json, || output::table(&rows))
}
