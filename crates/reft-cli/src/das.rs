//! `reft das`: where a model keeps a variable.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use reft_bench::{DasOptions, DasReport, DasSearch, DasTask, Error, Start};
use reft_models::WeightStorage;

use crate::command_line::{check_output, command};
use crate::failure::INTERRUPTED;
use crate::interrupt;
use crate::layers::Layers;
use crate::list::List;
use crate::machine::{DeviceChoice, KindChoice, set_threads};
use crate::model::{open_decoder, open_tokenizer};
use crate::output::{self, note};

/// Search for a variable of a causal model in a model's hidden states (distributed alignment search)
///
/// For each layer, token and rank a subspace is trained: its part of a source run is put into a base run, and the answer should become
/// what the causal model says. Held-out counterfactuals give the interchange intervention accuracy (IIA). A random subspace, neurons and
/// a model that was never trained are the controls. Writes `das.json`, `das.md` and `das.html`; Ctrl-C stops, and the same command goes
/// on after what is finished.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Search",
    after_long_help = "Examples:
  reft das --task recipes/das/pronoun.toml --model models/SmolLM2-135M-Instruct --output runs/das/pronoun
  reft das --task recipes/das/agreement.toml --model models/SmolLM2-135M-Instruct --layers '8;16;24' --positions subject,last --rank 1 --output runs/das/agreement"
)]
pub struct DasArgs {
    /// Model: a Hugging Face directory, a GGUF file, or a hub name such as org/name
    #[arg(long, value_name = "DIR")]
    model: String,
    /// Task: templates, lists and a causal model, as in recipes/das
    #[arg(long, value_name = "FILE.toml")]
    task: PathBuf,
    /// Directory to write: the report, and a directory for each subspace; new, empty, or that of a search
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Components of a block: block_input, attention_output, mlp_output, block_output
    #[arg(long, value_name = "LIST", default_value = "block_output")]
    sites: List<String>,
    /// Layers to search: all, or such as 3;9;18
    #[arg(long, value_name = "LAYERS", default_value = "all")]
    layers: Layers,
    /// Tokens: a slot's name, last, a number from 0, or one of these with +1 or -1 behind it [default: the task's]
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    positions: Option<List<String>>,
    /// Dimensions of the subspace
    #[arg(long, value_name = "LIST", default_value = "1,8", allow_hyphen_values = true)]
    rank: List<i64>,
    /// Skip the search in a model of random weights
    #[arg(long)]
    no_untrained_model: bool,
    #[command(flatten)]
    training: TrainingArgs,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Kind of the model's numbers: f32, bf16 or f16 [default: f32]
    #[arg(long, value_name = "KIND", default_value_t, hide_default_value = true)]
    kind: KindChoice,
    /// Where to compute: auto, cpu or cuda:N [default: auto = the first GPU if there is one]
    #[arg(long, value_name = "DEVICE", default_value_t, hide_default_value = true)]
    device: DeviceChoice,
    /// CPU threads to compute with [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Training")]
struct TrainingArgs {
    /// Counterfactuals to train on
    #[arg(long, value_name = "N", default_value_t = 128)]
    train_pairs: usize,
    /// Counterfactuals held out
    #[arg(long, value_name = "N", default_value_t = 96)]
    test_pairs: usize,
    /// Optimizer steps for each subspace
    #[arg(long, value_name = "N", default_value_t = 8)]
    steps: usize,
    /// Counterfactuals of a step
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch_size: usize,
    /// Learning rate of the first step; it falls to 0 on a line
    #[arg(long, value_name = "X", default_value_t = 5e-3)]
    lr: f64,
    /// Where a subspace begins: means = where the mean hidden state follows the variable, random = anywhere
    #[arg(long, value_name = "START", default_value = "means")]
    start: StartChoice,
    /// Seed of counterfactuals, starts and order
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StartChoice {
    Means,
    Random,
}

/// Runs the command.
pub fn run(args: &DasArgs) -> Result<ExitCode> {
    set_threads(args.threads)?;
    let task = DasTask::open(&args.task)?;
    check_output(&args.output, DasReport::FILE_NAME, "search")?;
    let (path, decoder) = open_decoder(&args.model, args.kind, WeightStorage::Dense, args.device)?;
    let Some(tokenizer) = open_tokenizer(&path)? else {
        bail!("model {} has no tokenizer, and the task is text", args.model);
    };
    let t = &args.training;
    let options = DasOptions {
        components: args.sites.0.clone(),
        layers: args.layers.of_model(decoder.config().num_hidden_layers)?,
        positions: args.positions.as_ref().map_or(&task.positions, |list| &list.0).clone(),
        ranks: args.rank.0.clone(),
        train_pairs: t.train_pairs,
        test_pairs: t.test_pairs,
        steps: t.steps,
        batch_size: t.batch_size,
        lr: t.lr,
        start: match t.start {
            StartChoice::Means => Start::Means,
            StartChoice::Random => Start::Random,
        },
        untrained_model: !args.no_untrained_model,
        seed: t.seed,
    };
    let names = (args.model.clone(), command());
    let search = DasSearch::new(options, &task, (&decoder, &tokenizer), names)?;
    let stop = interrupt::stop_flag("stopping; finished subspaces are kept (again: stop at once)")?;
    let (mut done, n) = (0, search.n_cells());
    let say = &mut |text: &str| {
        note(&format!("[{done}/{n}] {text}"));
        done += 1;
    };
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("cannot create {}", args.output.display()))?;
    let report = match search.run(&args.output, &stop, say) {
        Ok(report) => report,
        Err(Error::Interrupted) => {
            note("interrupted; finished subspaces are kept, the same command goes on after them");
            return Ok(ExitCode::from(INTERRUPTED));
        }
        Err(error) => return Err(error).context("the search stopped; finished subspaces are kept"),
    };
    if args.json {
        output::json(&report)?;
    } else {
        output::piece(&report.markdown())?;
        note(&format!("report: {}", args.output.join("das.html").display()));
    }
    Ok(ExitCode::SUCCESS)
}
