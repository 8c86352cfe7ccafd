//! `reft logits`: a forward pass as numbers, to be compared with other implementations.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_models::{
    AdapterStack, Component, Decoder, HookPoint, Hooks, JsonReason, Layout, Mode, Model,
    PaddingSide, Row, Site, Span, read_text, save_safetensors,
};
use reft_train::IGNORE_INDEX;
use serde::Deserialize;
use tch::{Kind, Reduction, Tensor};

use crate::model::ModelArgs;
use crate::terminal::{counted, output};

/// Compute logits, loss and hidden states of token ids, to check against other implementations
///
/// The input is `{"input_ids": [[…]], "prompt_lengths": [n, …], "labels": [[…]]}`. Rows may differ in length. Without
/// `prompt_lengths` the whole row is the prompt. `labels` are optional; a label of −100 is ignored.
///
/// The output holds `logits` f32 `[b, t, v]`. With labels it also holds `loss`, one number: the mean over labelled positions after the shift
/// by one. With --hidden-states it also holds `hidden.{i}` f32 [b, t, d]: 0 = embeddings, i = the output of block i−1, edits included.
/// Tokens stand in the caller's order, from column 0; columns past a row's end are 0.
///
/// An encoder (BERT, RoBERTa, DistilBERT, ModernBERT) has no logits. With --hidden-states it writes `hidden.{i}` and `hidden.last`, which is
/// transformers' `last_hidden_state`. Rows for an encoder are whole texts, without `prompt_lengths` and `labels`. They may have
/// `token_type_ids`, a list like `input_ids`; without them the type ids are 0.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:
  echo '{\"input_ids\": [[1, 2, 3], [4, 5]]}' > batch.json
  reft logits --model models/SmolLM2-135M-Instruct --input batch.json --output logits.safetensors")]
#[command(next_help_heading = "Input and output")]
pub struct LogitsArgs {
    /// Token ids: a JSON file (see --help)
    #[arg(long, value_name = "FILE.json")]
    input: PathBuf,
    /// File to write
    #[arg(long, value_name = "FILE.safetensors")]
    output: PathBuf,
    /// Write the hidden states after every block too
    #[arg(long)]
    hidden_states: bool,
    /// Pad shorter rows before their tokens, not after them; the numbers must be the same
    #[arg(long)]
    left_pad: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// The input file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Input {
    input_ids: Vec<Vec<i64>>,
    prompt_lengths: Option<Vec<usize>>,
    labels: Option<Vec<Vec<i64>>>,
    token_type_ids: Option<Vec<Vec<i64>>>,
}

/// Runs the command.
pub fn run(args: &LogitsArgs) -> Result<()> {
    let input = read(&args.input)?;
    let model = args.model.open()?;
    let decoder = &model.decoder;
    let is_encoder = !decoder.description().is_causal;
    let model_type = &decoder.description().model_type;
    if is_encoder {
        check_for_encoder(args, &input, model_type)?;
    }
    if input.token_type_ids.is_some() && decoder.config().embeddings.token_types == 0 {
        let path = args.input.display();
        bail!(
            "{path}: token_type_ids are there, and {model_type} has no types of tokens; leave them out"
        );
    }
    let _guard = tch::no_grad_guard();

    let padding = if args.left_pad { PaddingSide::Left } else { PaddingSide::Right };
    let in_input = || format!("in {}", args.input.display());
    let stack = model.stack()?;
    let layout = stack.layout(layout(&input, decoder, padding).with_context(in_input)?);

    let (h, hidden) =
        forward(decoder, &stack, &layout, args.hidden_states).with_context(in_input)?;
    let (what, last) = match is_encoder {
        true => ("hidden.last", h.to_kind(Kind::Float)),
        false => ("logits", decoder.logits(&h)),
    };
    let last = in_callers_order(&last, &layout);
    if let Some((row, token)) = not_finite(&last) {
        let (_, hidden) = forward(decoder, &stack, &layout, true)?;
        let first = hidden.iter().position(|h| not_finite(&in_callers_order(h, &layout)).is_some());
        let place = match first {
            Some(0) => "in the embeddings".to_owned(),
            Some(i) => format!("in layer {}", i - 1),
            None if is_encoder => "behind the last layer".to_owned(),
            None => "in the head".to_owned(),
        };
        bail!(
            "the {what} of row {row} at token {token} are NaN or infinite, and the first such numbers are {place}; look at the weights, the adapter and the kind (f16 ends at 65504); nothing is written"
        );
    }
    let mut tensors = Vec::new();
    if let Some(labels) = &input.labels {
        tensors.push(("loss".to_owned(), loss(&last, labels).with_context(in_input)?));
    }
    tensors.push((what.to_owned(), last));
    for (i, h) in hidden.iter().enumerate() {
        tensors.push((format!("hidden.{i}"), in_callers_order(&h.to_kind(Kind::Float), &layout)));
    }
    save_safetensors(&args.output, &tensors, None)?;
    let rows = layout.batch_size();
    let what = if is_encoder { "hidden states" } else { what };
    output::line(format!("{what} of {} are in {}", counted(rows, "row"), args.output.display()))
}

/// Refuses options and fields that an encoder does not have: logits, prompt lengths and labels.
fn check_for_encoder(args: &LogitsArgs, input: &Input, model_type: &str) -> Result<()> {
    if !args.hidden_states {
        bail!("{model_type} is an encoder, which has no logits; give --hidden-states");
    }
    for (name, is_there) in
        [("prompt_lengths", input.prompt_lengths.is_some()), ("labels", input.labels.is_some())]
    {
        if is_there {
            let path = args.input.display();
            bail!(
                "{path}: {name} are there, and {model_type} is an encoder, whose rows are whole texts and which predicts no tokens; leave them out"
            );
        }
    }
    Ok(())
}

/// Final hidden states; with `collects` also the embeddings and the output of every block.
fn forward(
    decoder: &Decoder,
    stack: &AdapterStack,
    layout: &Layout,
    collects: bool,
) -> Result<(Tensor, Vec<Tensor>)> {
    let mut hidden = Vec::new();
    let mut hooks = stack.hooks(layout, Mode::Eval)?;
    if collects {
        hooks.0.push(Box::new(Collect(&mut hidden))); // last, to see the adapters' edits
    }
    let h = decoder.whole_pass(layout, &mut hooks)?;
    drop(hooks);
    Ok((h, hidden))
}

/// Row and token of the first NaN or infinite number of a tensor `[b, t, ..]`.
fn not_finite(tensor: &Tensor) -> Option<(i64, i64)> {
    let tokens = tensor.size()[1];
    let is_finite = tensor.isfinite().flatten(2, -1).all_dim(2, false).flatten(0, -1); // [b · t]
    let first = is_finite.logical_not().to_kind(Kind::Int64).argmax(0, false).int64_value(&[]);
    (is_finite.int64_value(&[first]) == 0).then_some((first / tokens, first % tokens))
}

/// Reads the input.
pub(crate) fn read(path: &Path) -> Result<Input> {
    let input: Input = serde_json::from_str(&read_text(path)?)
        .map_err(JsonReason::from)
        .with_context(|| format!("{} is not the JSON that reft logits takes", path.display()))?;
    let rows = input.input_ids.len();
    let lists = [
        ("prompt_lengths", input.prompt_lengths.as_ref().map(Vec::len)),
        ("labels", input.labels.as_ref().map(Vec::len)),
        ("token_type_ids", input.token_type_ids.as_ref().map(Vec::len)),
    ];
    for (name, found) in lists {
        if let Some(found) = found.filter(|found| *found != rows) {
            let path = path.display();
            bail!("{path}: {name} has {found} rows, input_ids {rows}; give one for each");
        }
    }
    Ok(input)
}

fn layout(input: &Input, decoder: &Decoder, padding: PaddingSide) -> Result<Layout> {
    let mut rows = Vec::with_capacity(input.input_ids.len());
    for (i, ids) in input.input_ids.iter().enumerate() {
        let labels = input.labels.as_ref().map_or(&[][..], |labels| &labels[i]);
        let targets = labels.iter().filter(|label| **label != IGNORE_INDEX);
        let mut tokens = ids.iter().chain(targets);
        tokens.try_for_each(|id| decoder.check_token(*id)).with_context(|| format!("row {i}"))?;
        if input.labels.is_some() && labels.len() != ids.len() {
            bail!("row {i} has {} labels for {} input_ids; give one each", labels.len(), ids.len());
        }
        let prompt_length = input.prompt_lengths.as_ref().map_or(ids.len(), |lengths| lengths[i]);
        let token_types = input.token_type_ids.as_ref().map(|types| types[i].clone());
        rows.push(Row { input_ids: ids.clone(), prompt_length, token_types, ..Row::default() });
    }
    Ok(Layout::new(rows, padding)?)
}

/// Mean cross-entropy of each labelled token given the tokens before it, `[1]`; `logits` `[b, t, v]` in the caller's order.
fn loss(logits: &Tensor, labels: &[Vec<i64>]) -> Result<Tensor> {
    let (b, t, v) = logits.size3()?;
    let mut padded = vec![IGNORE_INDEX; (b * t) as usize];
    for (row, labels) in labels.iter().enumerate() {
        let start = row * t as usize;
        padded[start..start + labels.len()].copy_from_slice(labels);
    }
    let labels = Tensor::from_slice(&padded).view([b, t]).narrow(1, 1, t - 1).reshape([-1]);
    if labels.ne(IGNORE_INDEX).any().int64_value(&[]) == 0 {
        bail!("no label counts: each is {IGNORE_INDEX}, or stands at the first token of its row");
    }
    let logits = logits.narrow(1, 0, t - 1).reshape([-1, v]);
    let mean = Reduction::Mean;
    Ok(logits.cross_entropy_loss(&labels, None::<Tensor>, mean, IGNORE_INDEX, 0.0).view([1]))
}

/// Moves each row's tokens to column 0: `[b, t, ..]` on the CPU, without padding or virtual tokens in front, and 0 after the row's end.
fn in_callers_order(tensor: &Tensor, layout: &Layout) -> Tensor {
    let tensor = tensor.to_device(tch::Device::Cpu);
    let width = layout.width() - layout.virtual_tokens();
    let row = |(i, row): (usize, &Row)| {
        let length = row.input_ids.len() as i64;
        let tokens = tensor.select(0, i as i64).narrow(0, layout.column(i, 0) as i64, length);
        tokens.constant_pad_nd([0, 0, 0, width as i64 - length])
    };
    Tensor::stack(&layout.rows().iter().enumerate().map(row).collect::<Vec<_>>(), 0)
}

/// Keeps the input of the first block and the output of every block.
struct Collect<'a>(&'a mut Vec<Tensor>);

impl Hooks for Collect<'_> {
    fn visit(&mut self, point: HookPoint, h: Tensor, _: &Span) -> reft_models::Result<Tensor> {
        match point {
            HookPoint::Residual(Site { layer: 0, component: Component::BlockInput })
            | HookPoint::Residual(Site { component: Component::BlockOutput, .. }) => {
                self.0.push(h.shallow_clone());
            }
            _ => {}
        }
        Ok(h)
    }
}
