use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_causal::{KlPerToken, factor_reaching, median_norm};
use reft_models::{
    AdapterStack, ChatOptions, ReplyText, Row, StackAdapter, StackEntry, Tokenizer,
    atomic_directory,
};
use reft_train::{Template, Turns};
use tch::Kind;

use crate::generation::prompts::prompt_record;
use crate::generation::sampling_args::SamplingArgs;
use crate::generation::stream::stream;
use crate::model::{Model, ModelArgs, ModelText, model_name};
use crate::options::Flags;
use crate::steering::detection;
use crate::steering::sources::{Source, SourceArgs, row, rows_of};
use crate::steering::sweep::{self, SweepArgs};
use crate::terminal::{note, output};

/// Steer a model by a direction or any adapter, at a chosen strength
///
/// A direction is computed from two files of texts (to steer towards, and to steer away from), is the trained rank-1 subspace of a `reft das`
/// cell, or is an adapter of `reft train --method steering`. The direction, times its strength, is added to every token of the prompt and of
/// the reply. Several directions can be used at once. --output saves a direction as an adapter directory, which `generate`, `chat`, `eval`
/// and `serve` read.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Strength",
    after_long_help = "Examples:
  reft steer --model models/SmolLM2-135M-Instruct --layer 14 --positive examples/happy.txt --negative examples/sad.txt --strength 2 --prompt 'Today I feel'
  reft steer --model models/SmolLM2-135M-Instruct --layer 14 --positive examples/happy.txt --negative examples/sad.txt --kl 1 --output directions/happy
  reft steer --model models/SmolLM2-135M-Instruct --adapter directions/happy --strength -1 --prompt 'Today I feel'
  reft steer --model models/SmolLM2-135M-Instruct --layer 14 --das runs/das/pronoun/cells/block_output-14/name/rank-1 --strength -8 --prompt 'Alex smiled because'"
)]
pub struct SteerArgs {
    #[command(flatten)]
    sources: SourceArgs,
    /// Strength of a direction or adapter; below 0 it steers the other way [default: 1]
    ///
    /// Given several times: first for each adapter in order, then for the direction made here.
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Strength")]
    strength: Vec<f64>,
    /// Scale the strengths so that next tokens diverge this far from the plain model's, in nats per token
    #[arg(long, value_name = "NATS", num_args = 0..=1, default_missing_value = "1", conflicts_with = "perplexity", help_heading = "Strength")]
    kl: Option<f64>,
    /// Scale the strengths so that the reply to --prompt has this perplexity under the plain model
    #[arg(long, value_name = "X", requires = "prompt", help_heading = "Strength")]
    perplexity: Option<f64>,
    /// File of texts to measure --kl on, one per line [default: the texts of --positive and --negative]
    #[arg(long, value_name = "FILE", help_heading = "Strength")]
    texts: Option<PathBuf>,
    /// Prompt; used as it is unless --chat frames it
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["output", "sweep", "detect"], help_heading = "Reply")]
    prompt: Option<String>,
    /// The prompt is a user's message: the model's chat template frames it
    #[arg(long, help_heading = "Reply")]
    chat: bool,
    /// Save the direction as an adapter directory; at strength 1 it steers as in this command
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    output: Option<PathBuf>,
    /// Measure how much of the direction each text of this file shows
    ///
    /// The file has one text per line, or rows with a concept.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sweep", "prompt"], help_heading = "Output")]
    detect: Option<PathBuf>,
    /// Print --detect and --sweep as JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
    #[command(flatten)]
    sweep: SweepArgs,
    #[command(flatten)]
    variables: Flags<ChatOptions>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Runs the command.
pub fn run(args: &SteerArgs) -> Result<()> {
    let mut model = args.model.open_for("reft steer")?;
    let text = ModelText::open(&model.path, &args.variables.0)?;
    let Some(encoder) = text.encoder(Template::Chat, Turns::Last) else {
        bail!("model {} has no tokenizer for text", model.path.display());
    };
    let tokenizer = encoder.tokenizer;
    let apart = args.sweep.is_asked();
    let sources = args.sources.sources(&mut model, tokenizer, apart)?;
    let strengths = strengths(&args.strength, sources.len())?;
    if let Some(file) = &args.detect {
        return detection::detect(file, &sources, &model.decoder, encoder, args.json);
    }
    let texts = texts(args, tokenizer)?;
    if apart {
        let config = args.sampling.config(Some(tokenizer))?;
        let texts = texts.context(NO_TEXTS)?;
        let plan = sweep::Plan { sources: &sources, strengths, texts: &texts, kl: args.kl };
        return args.sweep.run(&plan, &model, tokenizer, config, args.json);
    }
    let prompt = match (&args.prompt, args.chat) {
        (Some(prompt), true) => {
            Some(Row::prompt(encoder.prompt(&prompt_record("prompt", prompt))?))
        }
        (Some(prompt), false) => Some(row(tokenizer, prompt)?),
        (None, _) => None,
    };
    let config = args.sampling.config(Some(tokenizer))?;
    let stack_at = |factor: f64| stack(&sources, &strengths, factor);
    let factor = match (args.kl, args.perplexity) {
        (Some(target), _) => {
            check_positive("--kl", target)?;
            let texts = texts.as_ref().context(NO_TEXTS)?;
            let kl = KlPerToken::of(&model.decoder, texts)?;
            let (factor, found) =
                factor_reaching("--kl", target, |factor| kl.under(&stack_at(factor)?))?;
            note(format!("strength {:.4}: {found:.3} nats per token", strengths[0] * factor));
            factor
        }
        (None, Some(target)) => {
            check_positive("--perplexity", target)?;
            let prompt = prompt.clone().context("--prompt is missing")?;
            sweep::factor_of_perplexity(target, &model.decoder, prompt, &config, &stack_at)?
        }
        (None, None) => 1.0,
    };
    let beside = prompt.iter().chain(texts.iter().flatten()).take(32).cloned().collect::<Vec<_>>();
    for (source, strength) in sources.iter().zip(&strengths) {
        warn_of_dose(source, strength * factor, &model, &beside)?;
    }
    if let Some(directory) = &args.output {
        save(&sources, strengths[0] * factor, &model, directory)?;
    }
    let Some(row) = prompt else { return Ok(()) };
    let reply = ReplyText::new(tokenizer, &config.stop_ids, &args.sampling.stop);
    stream(&model, &stack_at(factor)?, &row, &config, reply, &|| false)?;
    output::piece("\n")
}

const NO_TEXTS: &str = "there are no texts to measure --kl on; give --texts";

/// The strength of each source.
fn strengths(given: &[f64], n: usize) -> Result<Vec<f64>> {
    if let Some(strength) = given.iter().find(|strength| !strength.is_finite()) {
        bail!("--strength is {strength}, expected a number");
    }
    match given {
        [] => Ok(vec![1.0; n]),
        [one] => Ok(vec![*one; n]),
        several if several.len() == n => Ok(several.to_vec()),
        several => bail!(
            "--strength is given {} times, and {n} things steer; give it once for all, or once for each",
            several.len()
        ),
    }
}

fn check_positive(flag: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    bail!("{flag} is {value}, expected a number above 0")
}

/// The texts that strengths are calibrated on.
fn texts(args: &SteerArgs, tokenizer: &Tokenizer) -> Result<Option<Vec<Row>>> {
    let files: Vec<_> = match &args.texts {
        Some(file) => vec![file.as_path()],
        None => args.sources.files().collect(),
    };
    let rows =
        files.into_iter().map(|file| rows_of(tokenizer, file)).collect::<Result<Vec<_>>>()?;
    Ok(Some(rows.concat()).filter(|rows| !rows.is_empty()))
}

/// All sources, each at its strength times `factor`.
pub fn stack<'a>(
    sources: &'a [Source],
    strengths: &[f64],
    factor: f64,
) -> reft_models::Result<AdapterStack<'a>> {
    let entry = |(source, strength): (&'a Source, &f64)| StackEntry {
        adapter: StackAdapter::Borrowed(&*source.adapter),
        strength: strength * factor,
        subspace: None,
    };
    AdapterStack::new(sources.iter().zip(strengths).map(entry).collect())
}

/// Norm of a source's vector at a strength, divided by the median norm of the hidden states at its site; the largest value of its layers.
///
/// # Errors
/// If the model has no such site.
pub fn dose(source: &Source, strength: f64, model: &Model, texts: &[Row]) -> Result<Option<f64>> {
    let mut largest: Option<f64> = None;
    for (site, v) in source.directions() {
        let added = strength.abs() * v.to_kind(Kind::Float).norm().double_value(&[]);
        let dose = added / median_norm(&model.decoder, site, texts)?;
        largest = Some(largest.map_or(dose, |other| other.max(dose)));
    }
    Ok(largest)
}

/// Up to this dose replies stay fluent; at about 1.9 they collapse.
const SAFE_DOSE: f64 = 0.7;

fn warn_of_dose(source: &Source, strength: f64, model: &Model, texts: &[Row]) -> Result<()> {
    if texts.is_empty() {
        return Ok(());
    }
    let Some(dose) = dose(source, strength, model, texts)?.filter(|dose| *dose > SAFE_DOSE) else {
        return Ok(());
    };
    let name = &source.name;
    note(format!(
        "warning: the vector of {name} is {dose:.2} times as long as the hidden states; past {SAFE_DOSE} text suffers, and at about 1.9 it collapses"
    ));
    Ok(())
}

/// Writes the one direction, times its strength, as an adapter.
fn save(
    sources: &[Source],
    strength: f64,
    model: &Model,
    directory: &std::path::Path,
) -> Result<()> {
    let [source] = sources else {
        bail!(
            "--output keeps one direction, and {} things steer; join adapters with `reft merge-adapters`",
            sources.len()
        );
    };
    let base_model = model_name(&model.path.to_string_lossy(), &model.path);
    let adapter = source.saved(strength, &model.decoder, &base_model)?;
    atomic_directory(directory, |temporary| adapter.save(temporary))
        .with_context(|| format!("cannot write {}", directory.display()))?;
    note(format!("the direction is in {}; at strength 1 it steers as here", directory.display()));
    Ok(())
}
