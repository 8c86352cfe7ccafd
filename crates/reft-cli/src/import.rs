//! `reft import`: adapters and models of other formats.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::output;

/// Turn an adapter saved by pyreft, or a model in a GGUF file, into a directory that reft reads
///
/// An adapter becomes `reft_config.json` and `reft_model.safetensors`; pickles are read as data, nothing in them is run.
/// A GGUF file becomes a Hugging Face directory with f32 weights.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  reft import --from pyreft saved/ --positions f7+l7 --share-weights --model models/llama --output adapter
  reft import --from gguf SmolLM2-135M-Instruct.Q4_1.gguf --output models/SmolLM2-135M-Instruct")]
pub struct ImportArgs {
    /// Directory (pyreft) or file (gguf) to read
    #[arg(value_name = "PATH")]
    source: PathBuf,
    /// What it is: `pyreft` = a directory that pyreft's `save` wrote, `gguf` = a model in one file
    #[arg(long, value_name = "FORMAT")]
    from: Format,
    /// Directory to write; it must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

/// A format that can be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Pyreft,
    Gguf,
}

/// Runs the command.
pub fn run(args: &ImportArgs) -> Result<ExitCode> {
    match args.from {
        Format::Gguf => import_gguf(args)?,
        Format::Pyreft => bail!("not there yet"),
    }
    Ok(ExitCode::SUCCESS)
}

fn import_gguf(args: &ImportArgs) -> Result<()> {
    let (source, output) = (args.source.display(), args.output.display());
    reft_models::convert_gguf(&args.source, &args.output)
        .with_context(|| format!("cannot import {source}"))?;
    output::line(format!("{source} is now a model directory: {output}"))
}
