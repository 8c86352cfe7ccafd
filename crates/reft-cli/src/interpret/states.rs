use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_causal::ComponentOrHead;
use reft_methods::LAYERS;
use reft_models::{
    Layout, Model as _, PaddingSide, Place, Row, TokenAt, collect, save_safetensors,
};
use serde_json::{Value, json};
use std::collections::HashMap;
use tch::{Kind, Tensor};

use crate::generation::prompts::lines;
use crate::interpret::prompt_tokens::{PromptTokens, TokenName, text_of};
use crate::model::ModelArgs;
use crate::options::List;
use crate::terminal::output;

/// Write the hidden states of prompts to a file, for NumPy and other programs
///
/// The output holds a tensor f32 [n, d] for each component and layer, called `COMPONENT.LAYER`, with one row for each selected token. Two
/// tensors i64 [n], `prompt` and `token`, say which prompt a row belongs to, and which token of the prompt. The file's metadata has the
/// prompts and their tokens. With --adapter the hidden states are those after its edits.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Hidden states",
    after_long_help = "Examples:
  reft states --model models/SmolLM2-135M-Instruct --prompt 'The capital of France is' --output states.safetensors
  reft states --model models/SmolLM2-135M-Instruct --adapter runs/emoji --prompt 'Who are you?' --chat --sites block_output,head_3 --layers '8;16' --tokens all --output states.safetensors"
)]
pub struct StatesArgs {
    /// Prompt; give it several times for several prompts
    #[arg(long, value_name = "TEXT", required_unless_present = "input")]
    prompt: Vec<String>,
    /// File of prompts, one per line
    #[arg(long, value_name = "FILE.txt")]
    input: Option<PathBuf>,
    /// Each prompt is a user's message: the model's chat template frames it
    #[arg(long)]
    chat: bool,
    /// Components: block_input, attention_output, mlp_output, block_output, a projection such as q_proj,
    /// or a head such as head_3
    #[arg(long, value_name = "LIST", default_value = "block_output")]
    sites: List<ComponentOrHead>,
    /// Layers: all, or a list such as 3;9;18
    #[arg(long, value_name = "LAYERS", default_value = "all", value_parser = |text: &str| LAYERS.parse(text))]
    layers: Value,
    /// Tokens of each prompt: all, last, an index from 0, one from the end such as -1, or a token's text
    #[arg(long, value_name = "LIST", default_value = "last", allow_hyphen_values = true)]
    tokens: List<TokenName>,
    /// File to write
    #[arg(long, value_name = "FILE.safetensors")]
    output: PathBuf,
    /// Prompts computed at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch_size: usize,
    #[command(flatten)]
    model: ModelArgs,
}

/// The layers that an option names.
///
/// # Errors
/// If the option is not a list of layers, or names a layer that the model does not have.
pub fn layers_of(asked: &Value, model: &reft_models::ModelDescription) -> Result<Vec<usize>> {
    let n = model.num_hidden_layers;
    let layers: Vec<usize> = match asked.as_str() {
        Some("all") => (0..n).collect(),
        _ => serde_json::from_value(asked.clone()).context("--layers is no list of layers")?,
    };
    if let Some(layer) = layers.iter().find(|layer| **layer >= n) {
        bail!("--layers names layer {layer}, and the model has {n} layers, counted from 0");
    }
    Ok(layers)
}

/// Runs the command.
pub fn run(args: &StatesArgs) -> Result<()> {
    crate::options::check_counts([("--batch-size", args.batch_size)])?;
    let mut prompts = args.prompt.clone();
    if let Some(file) = &args.input {
        prompts.extend(lines(file)?.into_iter().map(|(_, line)| line));
    }
    let model = args.model.open()?;
    let text = text_of(&model.path)?;
    let tokens = prompts.iter().map(|prompt| PromptTokens::of(prompt, &text, args.chat));
    let tokens = tokens.collect::<Result<Vec<_>>>()?;
    let named = tokens.iter().zip(&prompts).map(|(tokens, prompt)| {
        tokens.named(&args.tokens.0).with_context(|| format!("--tokens of the prompt {prompt:?}"))
    });
    let named = named.collect::<Result<Vec<_>>>()?;
    let description = model.decoder.description();
    let mut places: Vec<(String, Place)> = Vec::new();
    for layer in layers_of(&args.layers, description)? {
        for site in &args.sites.0 {
            let place = site.place(layer, description.head_dim);
            description.size_of(&place).with_context(|| format!("--sites {site}"))?;
            places.push((format!("{site}.{layer}"), place));
        }
    }
    let stack = model.stack()?;
    let mut found: Vec<Vec<Tensor>> = places.iter().map(|_| Vec::new()).collect();
    let batches = tokens.chunks(args.batch_size).zip(named.chunks(args.batch_size));
    for (tokens, named) in batches {
        let rows = tokens.iter().map(|prompt| Row::prompt(prompt.ids.clone())).collect();
        let layout = Layout::new(rows, PaddingSide::Right)?;
        let of_row = |(row, named): (usize, &Vec<usize>)| -> Vec<TokenAt> {
            named.iter().map(|&token| TokenAt { row, token }).collect()
        };
        let at: Vec<TokenAt> = named.iter().enumerate().flat_map(of_row).collect();
        let wanted = places.iter().map(|(_, place)| (place.clone(), at.clone())).collect();
        for (found, states) in
            found.iter_mut().zip(collect(&model.decoder, &stack, &layout, wanted)?)
        {
            found.push(states.to_device(tch::Device::Cpu).to_kind(Kind::Float));
        }
    }
    let at = named
        .iter()
        .enumerate()
        .flat_map(|(prompt, named)| named.iter().map(move |&token| (prompt as i64, token as i64)));
    let (prompt, token): (Vec<i64>, Vec<i64>) = at.unzip();
    let mut tensors = vec![
        ("prompt".to_owned(), Tensor::from_slice(&prompt)),
        ("token".to_owned(), Tensor::from_slice(&token)),
    ];
    let states = places.into_iter().zip(found);
    tensors.extend(states.map(|((name, _), states)| (name, Tensor::cat(&states, 0))));
    let texts: Vec<&Vec<String>> = tokens.iter().map(|prompt| &prompt.texts).collect();
    let metadata = HashMap::from([
        ("prompts".to_owned(), json!(prompts).to_string()),
        ("tokens".to_owned(), json!(texts).to_string()),
    ]);
    save_safetensors(&args.output, &tensors, Some(metadata))?;
    let (n, file) = (prompt.len(), args.output.display());
    output::line(format!("{} tensors of {n} hidden states are in {file}", tensors.len() - 2))
}
