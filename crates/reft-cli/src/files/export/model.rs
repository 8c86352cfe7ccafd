//! Export of models, with or without an adapter merged into the weights.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytesize::ByteSize;
use reft_bench::Precision;
use reft_methods::{
    MERGED_ADAPTER, MERGED_BASE_MODEL, Methods, check_adapter, check_mergeable, export_model,
    merge_adapter,
};
use reft_models::{Decoder, GgufKind, Model, Weights, export_gguf};
use serde_json::json;

use super::command::ExportArgs;
use crate::machine::{DeviceChoice, KindChoice, MachineOptions};
use crate::model::{adapter_directory, open_config, open_decoder};
use crate::terminal::{grouped, note, output};

/// Default for the largest size of a weights file.
const SHARD_SIZE: ByteSize = ByteSize::gb(5);

/// Writes a Hugging Face directory of model and adapter.
pub(super) fn to_directory(args: &ExportArgs) -> Result<()> {
    let kind = match args.kind.map(GgufKind::name) {
        None => None,
        Some(name) => Some(name.parse::<Precision>().with_context(|| {
            format!("--kind {name} belongs to --to gguf; a directory holds f32, bf16 or f16")
        })?),
    };
    let Some(adapter) = &args.adapter else {
        bail!("--adapter is missing: the adapter to merge into the model")
    };
    let opened = Opened::of(args, |own| kind.unwrap_or(own))?;
    let facts = [
        (MERGED_ADAPTER, opened.method.clone().unwrap_or_default()),
        (MERGED_BASE_MODEL, opened.model.clone()),
    ];
    let largest = args.shard_size.unwrap_or(SHARD_SIZE).as_u64();
    export_model(&opened.decoder, &opened.path, &args.output, &facts, largest)?;
    let (parameters, kind) = (opened.decoder.description().parameters(), opened.kind);
    let json = json!({
        "output": args.output, "adapter": adapter, "method": opened.method, "kind": kind, "parameters": parameters,
    });
    output::result(args.json, &json, || {
        let (n, kind, output) = (grouped(parameters), kind.name(), args.output.display());
        output::line(format!("the merged model ({n} parameters, {kind}) is in {output}"))
    })
}

/// Writes a GGUF file of a model, or of model and adapter.
pub(super) fn to_gguf(args: &ExportArgs) -> Result<()> {
    match (args.merge, args.adapter.is_some()) {
        (true, false) => bail!("--adapter is missing: --merge puts an adapter into the model"),
        (false, true) => {
            bail!("--merge is missing: a GGUF file holds a model with the adapter in its weights")
        }
        _ => {}
    }
    if args.shard_size.is_some() {
        bail!("--shard-size belongs to a directory; a GGUF file is one");
    }
    let is_named = args.output.extension().is_some_and(|ending| ending == "gguf");
    if !is_named {
        bail!("--output is {}, expected a name that ends in .gguf", args.output.display());
    }
    // precision of the merge: the model's own without --kind, f32 for packed kinds such as q8_0
    let precision = |own: Precision| match args.kind {
        None => own,
        Some(kind) => kind.name().parse().unwrap_or_default(),
    };
    let opened = Opened::of(args, precision)?;
    let own = || opened.kind.name().parse::<GgufKind>();
    let kind = args.kind.map_or_else(own, Ok)?;
    let notes = export_gguf(&opened.decoder, &opened.path, &args.output, kind)?;
    for text in &notes {
        note(format!("note: {text}"));
    }
    let parameters = opened.decoder.description().parameters();
    let json = json!({
        "output": args.output, "adapter": args.adapter, "method": opened.method, "form": "gguf",
        "kind": kind.name(), "parameters": parameters, "notes": notes,
    });
    output::result(args.json, &json, || {
        let (n, kind, output) = (grouped(parameters), kind.name(), args.output.display());
        let what = if opened.method.is_some() { "merged model" } else { "model" };
        output::line(format!("the {what} ({n} parameters, {kind}) is in {output}"))
    })
}

/// A model with the adapter, if any, merged into its weights.
struct Opened {
    model: String,
    path: PathBuf,
    decoder: Decoder,
    kind: Precision,
    method: Option<String>,
}

impl Opened {
    /// Opens the model in the precision that `kind` chooses, given the model's own, and merges the adapter.
    fn of(args: &ExportArgs, kind: impl FnOnce(Precision) -> Precision) -> Result<Self> {
        let Some(model) = &args.model else { bail!("--model is missing: the model to write") };
        let (path, config) = open_config(model)?;
        if path.is_file() {
            bail!(
                "{model} is a GGUF file; make it a directory first: reft import --from gguf {model} --output DIR"
            );
        }
        let kind = kind(own_kind(&path)?);
        let machine = MachineOptions {
            kind: KindChoice::Is(kind),
            device: DeviceChoice::Cpu.into(),
            threads: args.threads,
            ..MachineOptions::default()
        };
        machine.set_up()?;
        let Some(named) = &args.adapter else {
            let (path, decoder) = open_decoder(model, &machine)?;
            return Ok(Self { model: model.clone(), path, decoder, kind, method: None });
        };
        let adapter = &adapter_directory(named)?;
        let cannot_merge = || format!("cannot merge adapter {} into {model}", named.display());
        let check = || -> Result<String> {
            check_mergeable(adapter)?;
            check_adapter(adapter, &config.describe())?;
            Ok(Methods::read(adapter)?.describe().0)
        };
        let method = check().with_context(cannot_merge)?;
        let (path, decoder) = open_decoder(model, &machine)?;
        merge_adapter(adapter, &decoder).with_context(cannot_merge)?;
        Ok(Self { model: model.clone(), path, decoder, kind, method: Some(method) })
    }
}

/// The kind of most of the model's tensors; f32 if that kind is not a [`Precision`].
fn own_kind(model: &Path) -> Result<Precision> {
    let dtypes = Weights::open(model)?.dtypes();
    let most = dtypes.into_iter().max_by_key(|(_, n)| *n);
    Ok(most.and_then(|(dtype, _)| dtype.to_lowercase().parse().ok()).unwrap_or_default())
}
