use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use reft_bench::Precision;
use reft_methods::{
    MERGED_ADAPTER, MERGED_BASE_MODEL, METHODS, Merging, Methods, check_adapter, check_mergeable,
    export_model, export_peft, export_pyreft, merge_adapter,
};
use reft_models::{Weights, atomic_directory};
use serde_json::json;

use crate::machine::{DeviceChoice, MachineOptions};
use crate::model::{adapter_directory, open_config, open_decoder};
use crate::terminal::{grouped, note, output};

/// Write an adapter or a merged model in a form that other programs read
///
/// With --merge the output is a Hugging Face directory: it computes what model and adapter do, at the model's own cost. What edits hidden
/// states or adds tokens is no change of weights, and is refused. With --to the adapter itself is written: `pyreft` takes the edits of ReFT, with
/// a README.md that says how they are loaded and where they stand; `peft` takes the methods that PEFT has.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  reft export --merge --model models/SmolLM2-135M-Instruct --adapter runs/lora --output models/merged
  reft generate --model models/merged --chat --prompt 'Who are you?'
  reft export --to pyreft --adapter runs/loreft --output for-pyreft
  reft export --to peft --adapter runs/lora --output for-peft")]
pub struct ExportArgs {
    /// Form to write the adapter in: pyreft or peft
    #[arg(long, value_name = "FORM", hide_possible_values = true)]
    to: Option<Form>,
    #[arg(long, required_unless_present = "to", help = merge_help())]
    merge: bool,
    /// Model: a Hugging Face directory, or a hub name such as org/name
    #[arg(long, value_name = "DIR", required_unless_present = "to")]
    model: Option<String>,
    /// Adapter: a directory, or a hub name such as org/name
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Directory to write; new or empty
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Kind of the weights written: f32, bf16 or f16; sums are f32 and rounded once [default: the model's own]
    #[arg(long, value_name = "KIND")]
    kind: Option<Precision>,
    /// Largest file of weights; more become several with an index
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    shard_size: ByteSize,
    /// CPU threads to compute with [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// The form of another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A directory as pyreft's `save` writes it.
    Pyreft,
    /// A directory as PEFT's `save_pretrained` writes it.
    Peft,
}

fn merge_help() -> String {
    let can = METHODS.iter().filter(|method| method.merging == Merging::IntoWeights);
    let names: Vec<&str> = can.map(|method| method.name).collect();
    format!("Merge the adapter into the weights; these methods can be: {}", names.join(", "))
}

/// Runs the command.
pub fn run(args: &ExportArgs) -> Result<()> {
    match (args.to, &args.model) {
        (Some(form), _) => adapter(args, form),
        (None, Some(model)) => merged_model(args, model),
        (None, None) => bail!("--model is missing: the model to merge into"),
    }
}

/// Writes the adapter alone.
fn adapter(args: &ExportArgs, form: Form) -> Result<()> {
    let given = [
        ("--merge", args.merge),
        ("--model", args.model.is_some()),
        ("--kind", args.kind.is_some()),
        ("--threads", args.threads.is_some()),
    ];
    if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
        bail!(
            "{flag} belongs to a merged model; leave it out where an adapter is written with --to"
        );
    }
    let adapter = &adapter_directory(&args.adapter)?;
    let (mut notes, name) =
        (Vec::new(), form.to_possible_value().expect("invariant: no form is skipped"));
    let written = atomic_directory(&args.output, |temporary| match form {
        Form::Peft => export_peft(adapter, temporary),
        Form::Pyreft => export_pyreft(adapter, temporary).map(|said| notes = said),
    });
    written.with_context(|| format!("cannot export adapter {}", args.adapter.display()))?;
    for text in &notes {
        note(format!("note: {text}"));
    }
    let method = Methods::read(adapter)?.describe().0;
    let json = json!({
        "output": args.output, "adapter": args.adapter, "method": method, "form": name.get_name(), "notes": notes,
    });
    output::result(args.json, &json, || {
        output::line(format!("the adapter ({method}) is in {}", args.output.display()))
    })
}

/// Writes the model with the adapter in its weights.
fn merged_model(args: &ExportArgs, model: &String) -> Result<()> {
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
    export_model(&decoder, &path, &args.output, &facts, args.shard_size.as_u64())?;
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
