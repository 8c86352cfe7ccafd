//! `reft export`: an adapter becomes part of its model's weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_bench::{
    MERGED_ADAPTER, MERGED_BASE_MODEL, adapter_options, check_adapter, check_mergeable,
    export_model, merge_adapter,
};
use reft_models::{DecoderConfig, WeightStorage, Weights, resolve_model};
use serde_json::json;
use tch::Kind;

use crate::machine::{DeviceChoice, KindChoice, set_threads};
use crate::model::{check_adapter_directory, open_decoder};
use crate::output::{self, grouped};

/// Write a model directory with an adapter merged into the weights
///
/// The merged model computes what model and adapter do, at the model's own cost, and any program that reads Hugging Face directories
/// can use it. lora, rslora, dora, ia3 and full can be merged; what edits hidden states or adds tokens is no change of weights, and is
/// refused. Adapters need no export to leave: those of lora, rslora, dora, prefix, prompt and ia3 are PEFT's files already.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:
  reft export --merge --model models/SmolLM2-135M-Instruct --adapter runs/lora --output models/merged
  reft generate --model models/merged --chat --prompt 'Who are you?'")]
pub struct ExportArgs {
    /// Merge the adapter into the weights
    #[arg(long, required = true)]
    merge: bool,
    /// Model: a Hugging Face directory, or a hub name such as org/name
    #[arg(long, value_name = "DIR")]
    model: String,
    /// Adapter directory
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Model directory to write; new or empty
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Kind of the weights written: f32, bf16 or f16; sums are f32 and rounded once [default: the model's own]
    #[arg(long, value_name = "KIND")]
    kind: Option<KindChoice>,
    /// CPU threads to compute with [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &ExportArgs) -> Result<ExitCode> {
    set_threads(args.threads)?;
    let path = resolve_model(&args.model)?;
    if path.is_file() {
        let model = &args.model;
        bail!(
            "{model} is a GGUF file; make it a directory first: reft import --from gguf {model} --output DIR"
        );
    }
    let config =
        DecoderConfig::open(&path).with_context(|| format!("cannot load model {}", args.model))?;
    let kind = args.kind.map_or_else(|| own_kind(&path), Ok)?;
    let adapter = &args.adapter;
    let cannot_merge = || format!("cannot merge adapter {} into {}", adapter.display(), args.model);
    let check = || -> Result<String> {
        check_adapter_directory(adapter)?;
        check_mergeable(adapter)?;
        check_adapter(adapter, &config)?;
        Ok(adapter_options(adapter)?.0)
    };
    let method = check().with_context(cannot_merge)?;
    let (path, decoder) = open_decoder(&args.model, kind, WeightStorage::Dense, DeviceChoice::Cpu)?;
    merge_adapter(adapter, &decoder).with_context(cannot_merge)?;
    let facts = [(MERGED_ADAPTER, method.clone()), (MERGED_BASE_MODEL, args.model.clone())];
    export_model(&decoder, &path, &args.output, &facts)?;
    let parameters = config.parameters();
    if args.json {
        output::json(&json!({
            "output": args.output, "adapter": adapter, "method": method, "kind": kind.to_string(), "parameters": parameters,
        }))?;
    } else {
        let (parameters, output) = (grouped(parameters), args.output.display());
        output::line(format!("the merged model ({parameters} parameters, {kind}) is in {output}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The kind that most of the model's tensors have.
fn own_kind(model: &Path) -> Result<KindChoice> {
    let dtypes: BTreeMap<String, usize> = Weights::open(model)?.dtypes();
    let most = dtypes.iter().max_by_key(|(_, n)| **n).map(|(dtype, _)| dtype.as_str());
    Ok(KindChoice(match most {
        Some("BF16") => Kind::BFloat16,
        Some("F16") => Kind::Half,
        _ => Kind::Float,
    }))
}
