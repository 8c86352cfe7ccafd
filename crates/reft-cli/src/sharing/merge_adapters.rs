use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use reft_methods::{
    AdapterFiles, AdapterSummary, JoinOptions, JoinPart, Joined, Joining, METHODS, declaration,
    declarations, join_adapters,
};
use reft_models::{Decoder, Model, atomic_directory, write_text};
use serde_json::json;

use crate::machine::{DeviceChoice, MachineOptions};
use crate::model::{adapter_directory, open_config, open_decoder};
use crate::sharing::model_card::{CARD, FrontMatter};
use crate::terminal::{grouped, note, output};

/// Merge several adapters into one that computes the same as their stack
///
/// The merged adapter computes the same as the given adapters one after the other, each at its strength: `base + strength * (edited - base)`.
/// The ranks of LoRA adapters are added up, or the sum is approximated with a given rank. Adapters that cannot be merged exactly are refused
/// with the reason; they can still be used as a stack, `--adapter A --adapter B`.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  reft merge-adapters runs/style runs/facts --output runs/both
  reft merge-adapters runs/style@0.5 runs/facts@1.5 --method svd --rank 8 --output runs/small")]
pub struct MergeAdaptersArgs {
    /// Adapters in the order of the stack: directories or hub names such as org/name
    ///
    /// A strength other than 1 follows after @.
    #[arg(value_name = "DIR[@STRENGTH]", required = true)]
    adapters: Vec<String>,
    /// Directory to write; new or empty
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    #[arg(long, value_name = "METHOD", default_value = "exact", hide_possible_values = true, help = method_help())]
    method: MergeMethod,
    /// With --method svd: the largest rank of a module
    #[arg(long, value_name = "R")]
    rank: Option<i64>,
    /// Base model to check against: a Hugging Face directory, a GGUF file, or a hub name; DoRA needs it
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// Licence of the adapter for its model card, by the hub's name for it, such as apache-2.0
    #[arg(long, value_name = "NAME")]
    license: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// How updates are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MergeMethod {
    /// The exact sum.
    Exact,
    /// The best approximation of the sum at a given rank.
    Svd,
}

fn method_help() -> String {
    let can = METHODS.iter().filter(|m| matches!(m.joining, Joining::Exactly { .. }));
    let names: Vec<&str> = can.map(|method| method.name).collect();
    format!(
        "exact, for {}; or svd, for lora and rslora: the best approximation of the sum with --rank",
        names.join(", ")
    )
}

/// Runs the command.
pub fn run(args: &MergeAdaptersArgs) -> Result<()> {
    let svd_rank = match (args.method, args.rank) {
        (MergeMethod::Exact, None) => None,
        (MergeMethod::Svd, Some(rank)) => Some(rank),
        (MergeMethod::Exact, Some(_)) => {
            bail!("--rank belongs to --method svd; add it, or leave --rank out")
        }
        (MergeMethod::Svd, None) => bail!("--rank is missing: the rank to approximate with"),
    };
    let parts = args.adapters.iter().map(|text| part(text)).collect::<Result<Vec<_>>>()?;
    let there = |part: &JoinPart| -> Result<JoinPart> {
        let directory = adapter_directory(&part.directory)?;
        Ok(JoinPart { directory, strength: part.strength })
    };
    let files = parts.iter().map(there).collect::<Result<Vec<_>>>()?;
    let decoder = args.model.as_deref().map(|model| open(model, &files)).transpose()?;
    let model = decoder.as_ref().map(|decoder| decoder as &dyn Model);
    let options = JoinOptions { svd_rank, model };
    let mut made = None;
    let merged = atomic_directory(&args.output, |temporary| -> Result<()> {
        let joined = join_adapters(&files, options, temporary)?;
        let summary = AdapterSummary::read(temporary)?;
        let card = card(args, &parts, &joined, &summary)?;
        write_text(&temporary.join(CARD), &card)?;
        made = Some(joined);
        Ok(())
    });
    merged.context("cannot merge the adapters")?;
    let Some(joined) = made else { return Ok(()) };
    for text in &joined.notes {
        note(format!("note: {text}"));
    }
    let of_part = |part: &JoinPart| json!({"adapter": part.directory, "strength": part.strength});
    let json = json!({
        "output": args.output,
        "method": joined.method,
        "parameters": joined.parameters,
        "adapters": parts.iter().map(of_part).collect::<Vec<_>>(),
        "modules": joined.modules,
        "notes": joined.notes,
    });
    output::result(args.json, &json, || {
        let (n, method, directory) =
            (grouped(joined.parameters), &joined.method, args.output.display());
        output::line(format!("the adapter ({method}, {n} parameters) is in {directory}"))?;
        match kept(&joined) {
            Some(kept) if svd_rank.is_some() => output::line(kept),
            _ => Ok(()),
        }
    })
}

/// Parses an adapter and its strength. The name of an existing directory may contain an @.
fn part(text: &str) -> Result<JoinPart> {
    let whole = JoinPart { directory: PathBuf::from(text), strength: 1.0 };
    let Some((directory, strength)) = text.rsplit_once('@') else { return Ok(whole) };
    match strength.parse::<f64>() {
        _ if whole.directory.is_dir() => Ok(whole),
        Ok(strength) if strength.is_finite() => {
            Ok(JoinPart { directory: PathBuf::from(directory), strength })
        }
        _ => bail!("the strength in {text} is {strength:?}, expected a number behind the @"),
    }
}

/// The base model: with its weights if one of the adapters needs them, else its shape alone.
fn open(model: &str, parts: &[JoinPart]) -> Result<Decoder> {
    let machine = MachineOptions { device: DeviceChoice::Cpu.into(), ..MachineOptions::default() };
    machine.set_up()?;
    let mut needs_weights = false;
    for part in parts {
        for (directory, of_files) in reft_methods::adapters_in(&part.directory)? {
            let declared = declaration((of_files.read)(&directory)?.name())?;
            needs_weights |=
                matches!(declared.joining, Joining::Exactly { needs_weights: true, .. });
        }
    }
    if needs_weights {
        return Ok(open_decoder(model, &machine)?.1);
    }
    let (_, config) = open_config(model)?;
    let weights = reft_models::Weights::shapes_only(&config.describe().tensors);
    Ok(Decoder::from_weights(config, &weights, tch::Kind::Float, tch::Device::Cpu)?)
}

/// Mean and least share of the sum's squared norm that the approximation keeps in a module, as text.
fn kept(joined: &Joined) -> Option<String> {
    let shares = || joined.modules.iter().map(|module| module.kept);
    let (least, n) = (shares().reduce(f64::min)?, joined.modules.len());
    let mean = shares().sum::<f64>() / n as f64;
    Some(format!(
        "kept of the sum's squared norm: {:.2} % on average over {n} modules, {:.2} % at least",
        100.0 * mean,
        100.0 * least
    ))
}

/// The model card, with the list of the merged adapters.
fn card(
    args: &MergeAdaptersArgs,
    parts: &[JoinPart],
    joined: &Joined,
    summary: &AdapterSummary,
) -> Result<String> {
    let name =
        |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let title = name(&args.output);
    let base_model = summary.base_model_name.as_deref().unwrap_or("BASE_MODEL");
    let is_of_peft =
        declarations(&joined.method)?.iter().all(|own| matches!(own.files, AdapterFiles::Peft(_)));
    let license = args.license.as_deref();
    let front = FrontMatter { base_model, is_of_peft, license, method: &joined.method };
    let mut out = front.text();
    writeln!(out, "\n# {title}\n")?;
    writeln!(
        out,
        "A `{}` adapter of **{base_model}**, made of several: it computes the same as a stack of them.\n",
        joined.method
    )?;
    writeln!(out, "| adapter | strength |\n| --- | ---: |")?;
    for part in parts {
        writeln!(out, "| {} | {} |", name(&part.directory).replace('|', "\\|"), part.strength)?;
    }
    writeln!(out)?;
    match (args.rank, kept(joined)) {
        (Some(rank), Some(kept)) => {
            writeln!(out, "The sum was approximated with rank {rank}; {kept}.\n")?;
        }
        _ => writeln!(out, "The sum is exact.\n")?,
    }
    for text in &joined.notes {
        writeln!(out, "- {text}\n")?;
    }
    writeln!(out, "Made with reft {}.", env!("CARGO_PKG_VERSION"))?;
    Ok(out + &front.use_it(&title))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strengths_stand_behind_the_last_at() -> Result<()> {
        let found = part("runs/a@b@-0.5")?;
        assert_eq!((found.directory, found.strength), (PathBuf::from("runs/a@b"), -0.5));
        assert_eq!(part("runs/a")?.strength, 1.0);
        for wrong in ["runs/a@", "runs/a@much", "runs/a@inf"] {
            assert!(
                part(wrong).is_err_and(|error| error.to_string().contains("expected a number"))
            );
        }
        let dir = tempfile::tempdir()?;
        let odd = dir.path().join("a@2");
        std::fs::create_dir(&odd)?;
        assert_eq!(part(&odd.to_string_lossy())?.strength, 1.0);
        Ok(())
    }
}
