use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_methods::{AdapterSummary, adapters_in};
use reft_models::{Hub, atomic_directory, io_error};
use serde_json::json;

use crate::model::fetch_adapter;
use crate::terminal::{bytes, output};

/// Fetch an adapter from the hub
///
/// The files go into the hub's cache, and are copied into --output. Only the files of an adapter are fetched, never pickles. A token is taken
/// from HF_TOKEN, or from the place where the hub's own program keeps it. The flag --adapter of other commands also takes the hub name.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  reft pull org/adapter --output adapters/adapter
  reft chat --model models/SmolLM2-135M-Instruct --adapter org/adapter")]
pub struct PullArgs {
    /// Name of the adapter on the hub
    #[arg(value_name = "ORG/NAME")]
    name: String,
    /// Branch, tag or commit [default: main]
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Directory to write; new or empty
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &PullArgs) -> Result<()> {
    let snapshot = fetch_adapter(&Hub::from_env()?, &args.name, args.revision.as_deref())?;
    let failed = || format!("{} is no adapter that can be used", args.name);
    adapters_in(&snapshot).with_context(failed)?;
    let summary = AdapterSummary::read(&snapshot).with_context(failed)?;
    atomic_directory(&args.output, |directory| -> Result<()> { copy(&snapshot, directory) })?;
    let json = json!({
        "output": args.output, "name": args.name, "method": summary.method, "parameters": summary.parameters,
        "base_model": summary.base_model_name, "bytes": summary.bytes,
    });
    output::result(args.json, &json, || {
        let (method, size, directory) =
            (&summary.method, bytes(summary.bytes), args.output.display());
        output::line(format!("the adapter ({method}, {size}) is in {directory}"))?;
        match &summary.base_model_name {
            Some(base) => output::line(format!("its base model: {base}")),
            None => Ok(()),
        }
    })
}

/// Copies the files of a snapshot, which are links into the cache.
fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).map_err(io_error("read", from))? {
        let path = entry.map_err(io_error("read", from))?.path();
        let Some(name) = path.file_name() else { bail!("{} has no name", path.display()) };
        let own = to.join(name);
        if path.is_dir() {
            fs::create_dir(&own).map_err(io_error("create", &own))?;
            copy(&path, &own)?;
        } else if reft_methods::is_adapter_file(name.to_string_lossy().as_ref())
            || name == "README.md"
        {
            let content = fs::read(&path).map_err(io_error("read", &path))?;
            fs::write(&own, content).map_err(io_error("write", &own))?;
        }
    }
    Ok(())
}
