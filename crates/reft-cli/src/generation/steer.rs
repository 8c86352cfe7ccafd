use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use reft_causal::{Direction, DirectionKind, last_hidden_states};
use reft_methods::SteeringAdapter;
use reft_models::{ChatOptions, Component, Model, ReplyText, Row, Site, Tokenizer};
use reft_train::{Template, Turns};

use crate::generation::prompts::{lines, prompt_record};
use crate::generation::sampling_args::SamplingArgs;
use crate::generation::stream::stream;
use crate::model::{ModelArgs, ModelText};
use crate::options::Flags;
use crate::terminal::output;

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
    #[arg(long, value_name = "METHOD", default_value = "means", value_parser = ["means", "pca"])]
    method: String,
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
    variables: Flags<ChatOptions>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Runs the command.
pub fn run(args: &SteerArgs) -> Result<()> {
    if Component::PROJECTIONS.contains(&args.site) {
        let site = args.site;
        bail!(
            "--site is {site}, expected block_input, attention_output, mlp_output or block_output"
        );
    }
    let texts = |path: &Option<PathBuf>| path.as_deref().map(lines).transpose();
    let (positive, negative) = (texts(&args.positive)?, texts(&args.negative)?);
    let mut model = args.model.open_for("reft steer")?;
    let (layer, layers) = (args.layer, model.decoder.description().num_hidden_layers);
    if layer >= layers {
        bail!("--layer is {layer}, the model has {layers} layers, 0 to {}", layers - 1);
    }
    let text = ModelText::open(&model.path, &args.variables.0)?;
    let Some(encoder) = text.encoder(Template::Chat, Turns::Last) else {
        bail!("model {} has no tokenizer for text", model.path.display());
    };
    let tokenizer = encoder.tokenizer;
    let site = Site { layer, component: args.site };
    let direction = match (&args.das, positive, negative) {
        (Some(directory), _, _) => Direction::of_alignment(directory)?,
        (None, Some(positive), Some(negative)) => {
            let states = |texts: Vec<(usize, String)>| -> Result<_> {
                let rows = texts.iter().map(|(_, text)| row(tokenizer, text.trim()));
                let rows = rows.collect::<Result<Vec<_>>>()?;
                Ok(last_hidden_states(&model.decoder, &rows, site)?)
            };
            let kind = match args.method.as_str() {
                "pca" => DirectionKind::PrincipalComponent,
                _ => DirectionKind::Means,
            };
            Direction::between(kind, &states(positive)?, &states(negative)?)?
        }
        _ => bail!("give --das, or --positive and --negative"),
    };
    let (size, d) = (direction.vector().size()[0], model.decoder.description().hidden_size);
    if size != d {
        bail!("the direction has {size} numbers, the model's hidden states have {d}");
    }
    let config = args.sampling.config(Some(tokenizer))?;
    let row = match args.chat {
        true => Row::prompt(encoder.prompt(&prompt_record("prompt", &args.prompt))?),
        false => row(tokenizer, &args.prompt)?,
    };
    let steering = SteeringAdapter::new(site, direction.vector(), args.strength)?;
    model.adapters.push(Box::new(steering));
    let reply = ReplyText::new(tokenizer, &config.stop_ids, &args.sampling.stop);
    stream(&model, &model.stack()?, &row, &config, reply, &|| false)?;
    output::piece("\n")
}

fn row(tokenizer: &Tokenizer, text: &str) -> Result<Row> {
    let ids = tokenizer.encode(text, true)?;
    if ids.is_empty() {
        bail!("{text:?} has no token; give at least one");
    }
    Ok(Row::prompt(ids))
}
