use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use clap::{Args, value_parser};
use reft_bench::Precision;
use reft_causal::{DasAlignment, DasOptions, DasRecipe, DasReport, DasSearch};
use reft_methods::LAYERS;
use reft_models::{ChatOptions, Model, weights_digest};
use serde_json::Value;

use crate::machine::{DeviceAndThreads, KindChoice, MachineOptions};
use crate::model::{ModelText, open_config, open_decoder};
use crate::options::{Flags, List};
use crate::terminal::{command, holds, note, show, stop_flag};

/// Search for a variable of a causal model in a model's hidden states (distributed alignment search)
///
/// For each layer, token and rank a subspace is trained. The part of a source run's hidden state in this subspace is put into a base run,
/// and the answer should become the answer of the causal model. The interchange intervention accuracy (IIA) is measured on held-out
/// counterfactuals. The controls are a random subspace, neurons, and a model that was never trained. Writes `das.json`, `das.md` and
/// `das.html`. Ctrl-C stops; the same command continues after the finished subspaces.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Search",
    after_long_help = "Examples:
  reft das --task recipes/das/pronoun.toml --model models/SmolLM2-135M-Instruct --output runs/das/pronoun
  reft das --task recipes/das/agreement.toml --model models/SmolLM2-135M-Instruct --layers '8;16;24' --positions subject,last --rank 1 --output runs/das/agreement
  reft das --task recipes/das/hierarchical-equality.toml --output runs/das/hierarchical-equality
  reft das --task recipes/das/pronoun.toml --model models/SmolLM2-135M-Instruct --sites attention_head --layers 25 --positions last --rank 1 --output runs/das/heads"
)]
pub struct DasArgs {
    /// Model: a Hugging Face directory, a GGUF file, or a hub name such as org/name
    ///
    /// Leave it out for a task that trains its own network.
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// Task: templates, lists and a causal model, as in recipes/das
    #[arg(long, value_name = "FILE.toml")]
    task: PathBuf,
    /// Directory for the report and the subspaces: new, empty, or written by a search
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Components: block_input, attention_output, mlp_output, block_output, attention_head (the heads of
    /// --heads), or one head such as head_3
    #[arg(long, value_name = "LIST", default_value = "block_output")]
    sites: List<String>,
    /// Heads that attention_head stands for, counted from 0 [default: all]
    #[arg(long, value_name = "LIST")]
    heads: Option<List<u32>>,
    /// Layers to search: all, or a list such as 3;9;18
    #[arg(long, value_name = "LAYERS", default_value = "all", value_parser = |text: &str| LAYERS.parse(text))]
    layers: Value,
    /// Tokens: a slot's name, last, or an index from 0; each may end in +1 or -1 [default: the task's]
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    positions: Option<List<String>>,
    /// Kind of swap: das = a trained subspace, boundless = the number of dimensions is learned too,
    /// sigmoid-mask = the choice of dimensions is learned too, neurons = no rotation, whole = the whole hidden state
    #[arg(long, value_name = "NAME", default_value = "das")]
    alignment: String,
    /// Dimensions that das and neurons swap [default: the task's, else 1,8]
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    rank: Option<List<i64>>,
    /// Skip the control search in a model of random weights
    #[arg(long)]
    no_untrained_model: bool,
    #[command(flatten)]
    training: TrainingArgs,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Kind of the model's numbers: f32, bf16 or f16
    #[arg(long, value_name = "KIND", default_value = "f32")]
    kind: Precision,
    #[command(flatten)]
    place: Flags<DeviceAndThreads>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Training")]
struct TrainingArgs {
    /// Counterfactuals to train on [default: the task's, else 128]
    #[arg(long, value_name = "N")]
    train_pairs: Option<usize>,
    /// Counterfactuals to hold out [default: the task's, else 96]
    #[arg(long, value_name = "N")]
    test_pairs: Option<usize>,
    /// Optimizer steps for each subspace [default: the task's, else 8]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Counterfactuals per step [default: the task's, else 16]
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Learning rate of the first step; it falls linearly to 0 [default: the task's, else 5e-3]
    #[arg(long, value_name = "X")]
    lr: Option<f64>,
    /// Start of a subspace: means = directions along which the mean hidden state follows the variable,
    /// random = random directions
    #[arg(long, value_name = "START", default_value = "means", value_parser = ["means", "random"])]
    start: String,
    /// Seed of counterfactuals, starts and order
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u64).range(..=i64::MAX as u64))]
    seed: u64,
}

/// The word in `--sites` for the heads that `--heads` names.
const ATTENTION_HEAD: &str = "attention_head";

/// Runs the command.
pub fn run(args: &DasArgs) -> Result<()> {
    args.place.0.set_up()?;
    let recipe = DasRecipe::open(&args.task)?;
    holds(&args.output, "search", (DasReport::FILE_NAME, ""))?;
    let stop = stop_flag("stopping; finished subspaces are kept (again: stop at once)")?;
    let file = args.task.display();
    match (&recipe, &args.model) {
        (DasRecipe::Text(_), None) => bail!("--task {file} is texts; name a model with --model"),
        (DasRecipe::Network(_), Some(model)) => {
            bail!("--task {file} trains a network of its own; leave --model {model} out")
        }
        (DasRecipe::Text(task), Some(model)) => {
            let machine =
                MachineOptions { kind: KindChoice::Is(args.kind), ..args.place.0.0.clone() };
            open_config(model)?.1.check_predicts("reft das")?;
            let (path, decoder) = open_decoder(model, &machine)?;
            let Some(tokenizer) = ModelText::open(&path, &ChatOptions::default())?.tokenizer else {
                bail!("model {model} has no tokenizer, and the task is text");
            };
            let shape = decoder.description();
            let (layers, heads) = (shape.num_hidden_layers, shape.num_attention_heads);
            let options = args.options(&recipe, layers, heads, &task.positions)?;
            let names = (model.clone(), command());
            let search = DasSearch::new(options, task, (&decoder, &tokenizer), names)?;
            finish(args, &search.with_weights(weights_digest(&path)?), stop)
        }
        (DasRecipe::Network(task), None) => {
            let layers = task.network.hidden_layers;
            let options = args.options(&recipe, layers, 0, &["last".to_owned()])?;
            note("training the network");
            let network = task.train(&options, stop)?;
            finish(args, &DasSearch::of_network(options, &network, command())?, stop)
        }
    }
}

impl DasArgs {
    /// Components and heads by name.
    fn components(&self, heads: i64) -> Result<Vec<String>> {
        let sites = &self.sites.0;
        if self.heads.is_some() && !sites.iter().any(|site| site == ATTENTION_HEAD) {
            bail!("--heads says which heads {ATTENTION_HEAD} stands for; add it to --sites");
        }
        let of_site = |site: &String| match (site.as_str(), &self.heads) {
            (ATTENTION_HEAD, Some(heads)) => heads.0.iter().map(|h| format!("head_{h}")).collect(),
            (ATTENTION_HEAD, None) => (0..heads).map(|h| format!("head_{h}")).collect(),
            _ => vec![site.clone()],
        };
        Ok(sites.iter().flat_map(of_site).collect())
    }

    /// The layers of a network with `n` of them.
    fn layers(&self, n: usize) -> Result<Vec<usize>> {
        let Value::Array(layers) = &self.layers else { return Ok((0..n).collect()) };
        let layers: Vec<usize> = layers.iter().filter_map(|x| Some(x.as_u64()? as usize)).collect();
        match layers.iter().find(|layer| **layer >= n) {
            Some(layer) => bail!("--layers: layer {layer} is out of range, use 0 to {}", n - 1),
            None => Ok(layers),
        }
    }

    /// The search: the command's options, else the task's, else the defaults.
    fn options(
        &self,
        recipe: &DasRecipe,
        layers: usize,
        heads: i64,
        positions: &[String],
    ) -> Result<DasOptions> {
        let (t, of_task) = (&self.training, recipe.search());
        let alignment: DasAlignment = self.alignment.parse()?;
        let ranks = match (&self.rank, &of_task.rank) {
            (Some(ranks), _) => ranks.0.clone(),
            (None, _) if !alignment.takes_rank() => Vec::new(),
            (None, Some(ranks)) => ranks.clone(),
            (None, None) => vec![1, 8],
        };
        Ok(DasOptions {
            components: self.components(heads)?,
            layers: self.layers(layers)?,
            positions: self.positions.as_ref().map_or(positions, |list| &list.0).to_vec(),
            alignment,
            ranks,
            train_pairs: t.train_pairs.or(of_task.train_pairs).unwrap_or(128),
            test_pairs: t.test_pairs.or(of_task.test_pairs).unwrap_or(96),
            steps: t.steps.or(of_task.steps).unwrap_or(8),
            batch_size: t.batch_size.or(of_task.batch_size).unwrap_or(16),
            lr: t.lr.or(of_task.lr).unwrap_or(5e-3),
            start: t.start.parse()?,
            untrained_model: !self.no_untrained_model,
            seed: t.seed,
        })
    }
}

/// Searches, and prints the results.
fn finish(args: &DasArgs, search: &DasSearch, stop: &AtomicBool) -> Result<()> {
    let (mut done, n) = (0, search.n_cells());
    let say = &mut |text: &str| {
        note(format!("[{done}/{n}] {text}"));
        done += 1;
    };
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("cannot create {}", args.output.display()))?;
    let report = search.run(&args.output, stop, say);
    let report = report.context("the search stopped; finished subspaces are kept")?;
    show(args.json, &report, &report.markdown(), &args.output.join("das.html"))
}
