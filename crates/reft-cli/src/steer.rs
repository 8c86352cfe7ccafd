//! `reft steer`: generation along a direction.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use reft_bench::{Direction, DirectionKind, SteeringAdapter, last_hidden_states};
use reft_models::{Component, Row, Site, Tokenizer};
use reft_train::{Content, Record, Template, TextEncoder};

use crate::generate::stream;
use crate::model::{ModelArgs, open_chat_template, open_tokenizer};
use crate::output;
use crate::reply_text::ReplyText;
use crate::sampling_args::SamplingArgs;

/// Generate while a direction is added to the hidden states of a layer
///
/// The direction is made of two files of texts (what to steer towards, what to steer away from), or it is the trained rank-1 subspace of
/// a `reft das` cell. It is added, times the strength, to every token of the prompt and of the reply.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Direction",
    after_long_help = "Examples:
  reft steer --model models/SmolLM2-135M-Instruct --layer 14 --positive happy.txt --negative sad.txt --strength 2 --prompt 'Today I feel'
  reft steer --model models/SmolLM2-135M-Instruct --layer 14 --das runs/das/pronoun/cells/block_output-14/name/rank-1 --strength -8 --prompt 'Alex smiled because'"
)]
pub struct SteerArgs {
    /// Layer whose hidden states are steered, counted from 0
    #[arg(long, value_name = "N")]
    layer: usize,
    /// Component of the block: block_input, attention_output, mlp_output or block_output
    #[arg(long, value_name = "NAME", default_value = "block_output")]
    site: Component,
    /// Directory of a rank-1 cell of `reft das`: its direction, of length 1
    #[arg(long, value_name = "DIR", conflicts_with_all = ["positive", "negative", "method"])]
    das: Option<PathBuf>,
    /// Texts to steer towards, one a line; the hidden states of their last tokens count
    #[arg(long, value_name = "FILE", required_unless_present = "das", requires = "negative")]
    positive: Option<PathBuf>,
    /// Texts to steer away from, one a line
    #[arg(long, value_name = "FILE", requires = "positive")]
    negative: Option<PathBuf>,
    /// What is made of the texts: means = difference of means, pca = first principal component
    #[arg(long, value_name = "METHOD", default_value = "means")]
    method: MethodChoice,
    /// How many times the direction is added; below 0 the other way
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    strength: f64,
    /// The prompt, as it is unless --chat frames it
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// The prompt is a user's message: the model's chat template frames it
    #[arg(long)]
    chat: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MethodChoice {
    Means,
    Pca,
}

/// Runs the command.
pub fn run(args: &SteerArgs) -> Result<ExitCode> {
    if Component::PROJECTIONS.contains(&args.site) {
        bail!(
            "--site is {}, expected block_input, attention_output, mlp_output or block_output",
            args.site
        );
    }
    let texts = |path: &Option<PathBuf>| path.as_deref().map(lines).transpose();
    let (positive, negative) = (texts(&args.positive)?, texts(&args.negative)?);
    let model = args.model.open()?;
    let layers = model.decoder.config().num_hidden_layers;
    if args.layer >= layers {
        bail!("--layer is {}, the model has {layers} layers, 0 to {}", args.layer, layers - 1);
    }
    let Some(tokenizer) = open_tokenizer(&model.path)? else {
        bail!("model {} has no tokenizer for text", model.path.display());
    };
    let site = Site { layer: args.layer, component: args.site };
    let direction = match (&args.das, positive, negative) {
        (Some(directory), _, _) => Direction::of_alignment(directory)?,
        (None, Some(positive), Some(negative)) => {
            let states = |texts: Vec<String>| -> Result<_> {
                let rows = texts.iter().map(|text| row(&tokenizer, text));
                let rows = rows.collect::<Result<Vec<_>>>()?;
                Ok(last_hidden_states(&model.decoder, &rows, site)?)
            };
            let kind = match args.method {
                MethodChoice::Means => DirectionKind::Means,
                MethodChoice::Pca => DirectionKind::PrincipalComponent,
            };
            Direction::between(kind, &states(positive)?, &states(negative)?)?
        }
        _ => bail!("give --das, or --positive and --negative"),
    };
    let (size, d) = (direction.vector().size()[0], model.decoder.config().hidden_size);
    if size != d {
        bail!("the direction has {size} numbers, the model's hidden states have {d}");
    }
    let config = args.sampling.config(Some(&tokenizer))?;
    let row = prompt(args, &model.path, &tokenizer)?;
    let steering = SteeringAdapter::new(site, &direction, args.strength)?;
    let model = model.with_adapter(Box::new(steering));
    let reply = ReplyText::new(&tokenizer, &config.stop_ids, args.sampling.stop());
    stream(&model, &row, &config, reply)?;
    output::piece("\n")?;
    Ok(ExitCode::SUCCESS)
}

/// The lines of a file that are not empty.
fn lines(path: &Path) -> Result<Vec<String>> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<String> = lines.map(str::to_owned).collect();
    if lines.is_empty() {
        bail!("{name} holds no text; give one a line");
    }
    Ok(lines)
}

fn row(tokenizer: &Tokenizer, text: &str) -> Result<Row> {
    let ids = tokenizer.encode(text, true)?;
    if ids.is_empty() {
        bail!("{text:?} has no token; give at least one");
    }
    Ok(Row::prompt(ids))
}

fn prompt(args: &SteerArgs, model: &Path, tokenizer: &Tokenizer) -> Result<Row> {
    if !args.chat {
        return row(tokenizer, &args.prompt);
    }
    let chat_template = open_chat_template(model)?;
    let template = Template::Chat;
    let encoder = TextEncoder { tokenizer, chat_template: chat_template.as_ref(), template };
    let content = Content::Completion { prompt: args.prompt.clone(), completion: String::new() };
    let record = Record { id: "prompt".to_owned(), content, subspace: None };
    Ok(Row::prompt(encoder.encode(&record)?.0))
}
