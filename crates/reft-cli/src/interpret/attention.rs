use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use reft_methods::LAYERS;
use reft_models::{
    Layout, Model as _, PaddingSide, Row, attention_weights, save_safetensors, write_text,
};
use reft_report::{AttentionMaps, attention_maps, counted, page};
use serde_json::{Value, json};
use tch::Tensor;

use crate::interpret::prompt_tokens::{PromptTokens, text_of};
use crate::interpret::states::layers_of;
use crate::model::ModelArgs;
use crate::terminal::{command, output};

/// Show which tokens each attention head looks at
///
/// Writes a page with a small map for every head of every layer. The chosen head is shown large, with the prompt's tokens on both axes. The
/// weights come from one run over the prompt. With --adapter the run includes the adapter's edits, and heads may also look at the adapter's
/// prefix and virtual tokens.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Attention",
    after_long_help = "Example:
  reft attention --model models/SmolLM2-135M-Instruct --prompt 'When Mary and John went to the store, John gave a drink to' --output attention.html"
)]
pub struct AttentionArgs {
    /// Prompt
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// The prompt is a user's message: the model's chat template frames it
    #[arg(long)]
    chat: bool,
    /// Layers: all, or a list such as 3;9;18
    #[arg(long, value_name = "LAYERS", default_value = "all", value_parser = |text: &str| LAYERS.parse(text))]
    layers: Value,
    /// Write the page to this file; it is self-contained
    #[arg(long, value_name = "FILE.html", required_unless_present = "weights")]
    output: Option<PathBuf>,
    /// Write the weights too: a tensor f32 [heads, tokens, keys] for each layer, called `layer.LAYER`
    #[arg(long, value_name = "FILE.safetensors")]
    weights: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

/// Most attention weights on a page; browsers are slow with more.
const LARGEST_PAGE: usize = 6_000_000;

/// Runs the command.
pub fn run(args: &AttentionArgs) -> Result<()> {
    let model = args.model.open()?;
    let prompt = PromptTokens::of(&args.prompt, &text_of(&model.path)?, args.chat)?;
    let description = model.decoder.description();
    let layers = layers_of(&args.layers, description)?;
    let stack = model.stack()?;
    let layout = Layout::new(vec![Row::prompt(prompt.ids.clone())], PaddingSide::Right)?;
    let named = |name: &'static str, n: usize| (0..n).map(move |i| format!("{name} {i}"));
    let virtual_tokens = named("virtual", stack.virtual_tokens());
    let queries: Vec<String> = virtual_tokens.chain(prompt.texts.iter().cloned()).collect();
    let keys: Vec<String> =
        named("prefix", stack.prefix_length()).chain(queries.iter().cloned()).collect();
    let heads = description.num_attention_heads as usize;
    let numbers = layers.len() * heads * queries.len() * keys.len();
    if args.output.is_some() && numbers > LARGEST_PAGE {
        let fitting = (LARGEST_PAGE / (numbers / layers.len()).max(1)).max(1);
        bail!(
            "the page would hold {numbers} weights, and takes {LARGEST_PAGE}; name fewer layers with --layers ({fitting} of them fit), give a shorter prompt, or leave --output out and give --weights"
        );
    }
    let found: Vec<Tensor> = attention_weights(&model.decoder, &stack, &layout, &layers)?
        .into_iter()
        .map(|weights| weights.squeeze_dim(0)) // [n_h, t, keys]
        .collect();
    if let Some(path) = &args.weights {
        let name =
            |(layer, weights): (&usize, &Tensor)| (format!("layer.{layer}"), weights.contiguous());
        let tensors: Vec<(String, Tensor)> = layers.iter().zip(&found).map(name).collect();
        let metadata = HashMap::from([
            ("prompt".to_owned(), args.prompt.clone()),
            ("tokens".to_owned(), json!(queries).to_string()),
            ("keys".to_owned(), json!(keys).to_string()),
        ]);
        save_safetensors(path, &tensors, Some(metadata))?;
        output::line(format!(
            "the weights of {} are in {}",
            counted(layers.len(), "layer"),
            path.display()
        ))?;
    }
    if let Some(path) = &args.output {
        let weights = Tensor::stack(&found, 0).flatten(0, -1);
        let weights = Vec::<f32>::try_from(weights.contiguous())?;
        let maps = AttentionMaps {
            layers: &layers,
            heads,
            queries: &queries,
            keys: &keys,
            weights: &weights,
        };
        let facts = vec![
            format!("Prompt `{}`", args.prompt),
            format!(
                "{}, {} of {}",
                counted(queries.len(), "token"),
                counted(layers.len(), "layer"),
                counted(heads, "head")
            ),
            format!("Command: `{}`", command()),
        ];
        let legend = "A weight is the share of a head's attention that a token pays to another; those of a row sum to 1. The colour follows its square root, so that small weights are seen. \
            A weight says where a head looks, not that what it finds there matters for the answer: patching tests that.";
        write_text(path, &page("Attention", facts, legend, |out| attention_maps(out, &maps)))?;
        output::line(format!("the page is {}", path.display()))?;
    }
    Ok(())
}
