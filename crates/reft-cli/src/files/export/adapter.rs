//! Export of adapters without their model.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use reft_methods::{Methods, export_control_vector, export_peft, export_pyreft};
use reft_models::atomic_directory;
use serde_json::json;

use super::command::ExportArgs;
use crate::model::adapter_directory;
use crate::terminal::{note, output};

/// Writes the edits of ReFT for pyreft.
pub(super) fn to_pyreft(args: &ExportArgs) -> Result<()> {
    write(args, "pyreft", export_pyreft)
}

/// Writes an adapter for PEFT, if PEFT has its method.
pub(super) fn to_peft(args: &ExportArgs) -> Result<()> {
    write(args, "peft", |adapter, directory| export_peft(adapter, directory).map(|()| Vec::new()))
}

/// Writes the vectors that an adapter adds to the outputs of blocks, for llama.cpp.
pub(super) fn to_control_vector(args: &ExportArgs) -> Result<()> {
    let (named, adapter) = adapter_of(args)?;
    let notes = export_control_vector(&adapter, &args.output, None)
        .with_context(|| format!("cannot export adapter {}", named.display()))?;
    say(args, &named, &adapter, "control-vector", &notes)
}

fn write(
    args: &ExportArgs,
    form: &str,
    export: impl FnOnce(&Path, &Path) -> reft_methods::Result<Vec<String>>,
) -> Result<()> {
    let (named, adapter) = adapter_of(args)?;
    let mut notes = Vec::new();
    let written = atomic_directory(&args.output, |temporary| {
        export(&adapter, temporary).map(|said| notes = said)
    });
    written.with_context(|| format!("cannot export adapter {}", named.display()))?;
    say(args, &named, &adapter, form, &notes)
}

/// The adapter as the command line names it, and its directory. Refuses flags that belong to a model.
fn adapter_of(args: &ExportArgs) -> Result<(PathBuf, PathBuf)> {
    let given = [
        ("--merge", args.merge),
        ("--model", args.model.is_some()),
        ("--kind", args.kind.is_some()),
        ("--shard-size", args.shard_size.is_some()),
        ("--threads", args.threads.is_some()),
    ];
    if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
        bail!("{flag} belongs to a model; leave it out where an adapter is written with --to");
    }
    let Some(named) = &args.adapter else { bail!("--adapter is missing: the adapter to write") };
    Ok((named.clone(), adapter_directory(named)?))
}

/// Prints the notes and the output directory.
fn say(
    args: &ExportArgs,
    named: &Path,
    adapter: &Path,
    form: &str,
    notes: &[String],
) -> Result<()> {
    for text in notes {
        note(format!("note: {text}"));
    }
    let method = Methods::read(adapter)?.describe().0;
    let json = json!({
        "output": args.output, "adapter": named, "method": method, "form": form, "notes": notes,
    });
    output::result(args.json, &json, || {
        output::line(format!("the adapter ({method}) is in {}", args.output.display()))
    })
}
