use std::ops::ControlFlow;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_methods::{AdapterFiles, MethodDeclaration, declaration};
use reft_models::{
    AdapterStack, ChatOptions, ContextLimit, Finish, Generated, GenerationConfig, Message,
    Model as _, Row, Tokenizer,
};
use reft_train::{Content, Record, Template, Turns, read_prompts};
use serde_json::{Value, json};

use crate::generation::prompts::{lines, prompt_record};
use crate::generation::reply_text::{ReplyText, stream};
use crate::generation::sampling_args::SamplingArgs;
use crate::model::{Model, ModelArgs, ModelText};
use crate::options::Flags;
use crate::terminal::output;

/// Generate replies to one prompt or to a file of them
///
/// A single prompt's reply is printed as it grows. Adapters edit the prompt only, so every further token costs what it costs the
/// base model. Greedy unless --temperature is above 0.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Prompts",
    after_long_help = "Examples:
  reft generate --model models/SmolLM2-135M-Instruct --adapter runs/emoji --chat --prompt 'Who are you?'
  reft generate --model models/SmolLM2-135M-Instruct --input questions.txt --batch-size 16 --json"
)]
pub struct GenerateArgs {
    /// The prompt, as it is unless --chat or --template frames it
    #[arg(long, value_name = "TEXT", required_unless_present = "input", conflicts_with = "input")]
    prompt: Option<String>,
    /// Prompts: a .txt file with one a line, or rows as `reft train` takes them, with or without what is to be learned
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// The prompt is a user's message: the model's chat template frames it
    #[arg(long, conflicts_with = "template")]
    chat: bool,
    /// Begin the chat with this system message
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// How a prompt is framed: auto, chat, alpaca or plain [default: auto = as the row's form suggests]
    #[arg(long, value_name = "NAME")]
    template: Option<Template>,
    /// Coordinates of ReFT's subspace that the edit may change, 0-3 or 0-3,6 [default: all, or what a row names]
    #[arg(long, value_name = "LIST")]
    subspace: Option<Coordinates>,
    /// Prompts generated for at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch_size: usize,
    /// Print replies and token ids as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    variables: Flags<ChatOptions>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Runs the command.
pub fn run(args: &GenerateArgs) -> Result<()> {
    let records = match &args.input {
        None => vec![prompt_record("prompt", args.prompt.as_deref().unwrap_or_default())],
        Some(path) if path.extension().is_some_and(|extension| extension == "txt") => {
            let record = |(n, line): (usize, String)| prompt_record(&format!("line {n}"), &line);
            lines(path)?.into_iter().map(record).collect()
        }
        Some(path) => read_prompts(path)?,
    };
    let model = args.model.open()?;
    let text = ModelText::open(&model.path, &args.variables.0)?;
    let tokenizer = text.tokenizer.as_ref();
    let batch_size = Some(args.batch_size);
    let config = GenerationConfig { batch_size, ..args.sampling.config(tokenizer)? };
    let rows = rows(args, &records, &model, &text)?;
    if let ([row], Some(tokenizer), false) = (&rows[..], tokenizer, args.json) {
        let reply = ReplyText::new(tokenizer, &config.stop_ids, &args.sampling.stop);
        stream(&model, row, &config, reply, &|| false)?;
        return output::piece("\n");
    }
    let started = Instant::now();
    let stack = model.stack()?;
    let context = ContextLimit::of(model.decoder.description(), &stack);
    let lengths = records.iter().zip(&rows).map(|(record, row)| (&record.id, row.input_ids.len()));
    context.generating(config.max_new_tokens).check(lengths)?; // by the names that the file has
    let generated = generate(&model, &stack, &rows, &config)?;
    let seconds = started.elapsed().as_secs_f64();
    let tokens: usize = generated.iter().map(|generated| generated.ids.len()).sum();
    let reply = |((record, row), generated): ((&Record, &Row), &Generated)| -> Result<Value> {
        let (text, finish) = said(args, tokenizer, &config, generated)?;
        let n = row.input_ids.len();
        let mut reply =
            json!({"id": record.id, "prompt_tokens": n, "ids": generated.ids, "finish": finish});
        if let Some(text) = text {
            reply["text"] = text.into();
        }
        Ok(reply)
    };
    let replies =
        records.iter().zip(&rows).zip(&generated).map(reply).collect::<Result<Vec<_>>>()?;
    let speed = tokens as f64 / seconds;
    let json =
        json!({"rows": replies, "tokens": tokens, "seconds": seconds, "tokens_per_second": speed});
    output::result(args.json, &json, || {
        records.iter().zip(&replies).zip(&generated).try_for_each(|((record, reply), generated)| {
            let ids = || format!("{:?}", generated.ids);
            let text = reply["text"].as_str().map_or_else(ids, |text| text.trim_end().to_owned());
            output::line(format!("[{}] {text}", record.id))
        })
    })
}

/// The prompts as tokens.
fn rows(
    args: &GenerateArgs,
    records: &[Record],
    model: &Model,
    text: &ModelText,
) -> Result<Vec<Row>> {
    let methods = model.adapters.iter().map(|adapter| declaration(adapter.method()));
    let is_reft = |method: &MethodDeclaration| method.files == AdapterFiles::Reft;
    if args.subspace.is_some() && !methods.flatten().any(is_reft) {
        bail!("--subspace is for ReFT adapters, and none is given; leave it out");
    }
    let stack = model.stack()?;
    let chosen = if args.chat { Some(Template::Chat) } else { args.template };
    let encoder = text.encoder(chosen.unwrap_or(Template::Auto), Turns::Last);
    let row = |record: &Record| -> Result<Row> {
        let id = &record.id;
        let prompt = match (&record.content, &encoder) {
            (Content::Tokens { input_ids, prompt_length, .. }, _) => input_ids
                .get(..*prompt_length)
                .with_context(|| format!("{id}: prompt_length is past the end"))?
                .to_vec(),
            (_, Some(encoder)) => encoder.prompt(&with_system(record, args.system.as_deref()))?,
            (_, None) => {
                let model = model.path.display();
                bail!("{id}: model {model} has no tokenizer for text; give input_ids")
            }
        };
        if prompt.is_empty() {
            bail!("{id}: the prompt has no token; give at least one");
        }
        let asked = || args.subspace.as_ref().map(|subspace| subspace.0.clone());
        let row = Row { subspace: record.subspace.clone().or_else(asked), ..Row::prompt(prompt) };
        stack.check_subspace(&row).with_context(|| format!("cannot use {id}"))?;
        Ok(row)
    };
    records.iter().map(row).collect()
}

/// A row with a system message before what the user says.
fn with_system(record: &Record, system: Option<&str>) -> Record {
    let mut record = record.clone();
    if let (Some(system), Some(messages)) = (system, record.content.messages()) {
        let messages = [vec![Message::new("system", system)], messages].concat();
        let tools = match record.content {
            Content::Chat { tools, .. } => tools,
            _ => None,
        };
        record.content = Content::Chat { messages, tools };
    }
    record
}

/// Generates for all prompts, with a bar.
fn generate(
    model: &Model,
    stack: &AdapterStack,
    rows: &[Row],
    config: &GenerationConfig,
) -> Result<Vec<Generated>> {
    let bar = output::bar(rows.len(), "{bar:30} {pos}/{len} prompts  {msg}  {eta} left");
    let started = Instant::now();
    let (mut tokens, mut lengths) = (0, vec![0; rows.len()]);
    let on_token = &mut |row: usize, id: i64| {
        tokens += 1;
        lengths[row] += 1;
        if config.stop_ids.contains(&id) || lengths[row] == config.max_new_tokens {
            bar.inc(1);
            let speed = f64::from(tokens) / started.elapsed().as_secs_f64();
            bar.set_message(format!("{speed:.0} tokens/s"));
        }
        ControlFlow::Continue(())
    };
    let generated = reft_models::generate(&model.decoder, stack, rows, config, on_token);
    bar.finish_and_clear();
    Ok(generated?)
}

/// The text of a reply, if the model has a tokenizer, and why it ends.
fn said(
    args: &GenerateArgs,
    tokenizer: Option<&Tokenizer>,
    config: &GenerationConfig,
    generated: &Generated,
) -> Result<(Option<String>, Finish)> {
    let Some(tokenizer) = tokenizer else { return Ok((None, generated.finish)) };
    let mut reply = ReplyText::new(tokenizer, &config.stop_ids, &args.sampling.stop);
    let pieces = generated.ids.iter().map(|&id| reply.push(id));
    let text = pieces.collect::<reft_models::Result<String>>()?;
    let finish = if reply.is_over() { Finish::Stop } else { generated.finish };
    Ok((Some(text + &reply.finish()?), finish))
}

/// Coordinates, counted from 0, in ascending order, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coordinates(pub Vec<i64>);

/// No subspace has more: keeps a slip of the finger from filling the memory.
const MOST: i64 = 65_536;

impl FromStr for Coordinates {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut coordinates = Vec::new();
        for part in text.split([',', ';']) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.trim().parse::<i64>(), last.trim().parse::<i64>()) {
                (Ok(first), Ok(last)) if 0 <= first && first <= last && last < MOST => {
                    coordinates.extend(first..=last);
                }
                _ => bail!(
                    "{part:?} in {text:?} is no coordinate; use one such as 4, or several such as 0-3,6 (counted from 0)"
                ),
            }
        }
        coordinates.sort_unstable();
        coordinates.dedup();
        Ok(Self(coordinates))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_numbers_and_ranges() -> Result<()> {
        for (text, expected) in [
            ("4", vec![4]),
            ("0-3", vec![0, 1, 2, 3]),
            ("6;0-2", vec![0, 1, 2, 6]),
            ("1, 0-1", vec![0, 1]),
        ] {
            assert_eq!(text.parse::<Coordinates>()?.0, expected, "{text}");
        }
        for wrong in ["", "-1", "3-1", "a", "1-", "0-3,", "0-99999999999"] {
            assert!(wrong.parse::<Coordinates>().is_err(), "{wrong:?} is taken for coordinates");
        }
        Ok(())
    }
}
