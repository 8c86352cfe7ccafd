use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_bench::Precision;
use reft_methods::{
    MERGED_ADAPTER, MERGED_BASE_MODEL, METHODS, Merging, Methods, check_adapter, check_mergeable,
    export_model, merge_adapter,
};
use reft_models::Weights;
use serde_json::json;

use crate::machine::{DeviceChoice, MachineOptions};
use crate::model::{adapter_directory, open_config, open_decoder};
use crate::terminal::{grouped, output};

/// Write a model directory with an adapter merged into the weights
///
/// The merged model computes what model and adapter do, at the model's own cost, and any program that reads Hugging Face directories
/// can use it. What edits hidden states or adds tokens is no change of weights, and is refused. Adapters need no export to leave: those of
/// the methods that PEFT has are PEFT's files already.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:
  reft export --merge --model models/SmolLM2-135M-Instruct --adapter runs/lora --output models/merged
  reft generate --model models/merged --chat --prompt 'Who are you?'")]
pub struct ExportArgs {
    #[arg(long, required = true, help = merge_help())]
    merge: bool,
    /// Model: a Hugging Face directory, or a hub name such as org/name
    #[arg(long, value_name = "DIR")]
    model: String,
    /// Adapter: a directory, or a hub name such as org/name
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Model directory to write; new or empty
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Kind of the weights written: f32, bf16 or f16; sums are f32 and rounded once [default: the model's own]
    #[arg(long, value_name = "KIND")]
    kind: Option<Precision>,
    /// CPU threads to compute with [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

fn merge_help() -> String {
    let can = METHODS.iter().filter(|method| method.merging == Merging::IntoWeights);
    let names: Vec<&str> = can.map(|method| method.name).collect();
    format!("Merge the adapter into the weights; these methods can be: {}", names.join(", "))
}

/// Runs the command.
pub fn run(args: &ExportArgs) -> Result<()> {
    let model = &args.model;
    let (path, config) = open_config(model)?;
    if path.is_file() {
        bail!(
            "{model} is a GGUF file; make it a directory first: reft import --from gguf {model} --output DIR"
        );
    }
    let kind = args.kind.map_or_else(|| own_kind(&path), Ok)?;
    let machine = MachineOptions {
        kind,
        device: DeviceChoice::Cpu,
        threads: args.threads,
        ..MachineOptions::default()
    };
    machine.set_up()?;
    let description = config.describe();
    let adapter = &adapter_directory(&args.adapter)?;
    let cannot_merge = || format!("cannot merge adapter {} into {model}", args.adapter.display());
    let check = || -> Result<String> {
        check_mergeable(adapter)?;
        check_adapter(adapter, &description)?;
        Ok(Methods::read(adapter)?.describe().0)
    };
    let method = check().with_context(cannot_merge)?;
    let (path, decoder) = open_decoder(model, &machine)?;
    merge_adapter(adapter, &decoder).with_context(cannot_merge)?;
    let facts = [(MERGED_ADAPTER, method.clone()), (MERGED_BASE_MODEL, model.clone())];
    export_model(&decoder, &path, &args.output, &facts)?;
    let parameters = description.parameters();
    let json = json!({
        "output": args.output, "adapter": args.adapter, "method": method, "kind": kind, "parameters": parameters,
    });
    output::result(args.json, &json, || {
        let (n, kind, output) = (grouped(parameters), kind.name(), args.output.display());
        output::line(format!("the merged model ({n} parameters, {kind}) is in {output}"))
    })
}

/// The kind that most of the model's tensors have; f32 if it is none of ours.
fn own_kind(model: &Path) -> Result<Precision> {
    let dtypes = Weights::open(model)?.dtypes();
    let most = dtypes.into_iter().max_by_key(|(_, n)| *n);
    Ok(most.and_then(|(dtype, _)| dtype.to_lowercase().parse().ok()).unwrap_or_default())
}
