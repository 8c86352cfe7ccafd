use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_methods::{AdapterFiles, MethodDeclaration, declaration};
use reft_models::{
    AdapterStack, ChatOptions, ContextLimit, Finish, Generated, GenerationConfig, Message,
    Model as _, ReplyText, Row, Tokenizer, write_text,
};
use reft_report::{counted, page, texts};
use reft_train::{ColumnOptions, Content, Record, Template, Turns, read_prompts};
use serde_json::{Value, json};

use crate::generation::prompts::{lines, prompt_record};
use crate::generation::sampling_args::SamplingArgs;
use crate::generation::stream::stream;
use crate::model::{Framing, Model, ModelArgs, ModelText};
use crate::options::Flags;
use crate::terminal::{command, note, output};

/// Generate replies to one prompt or to a file of them
///
/// A single prompt's reply is printed as it grows. ReFT adapters edit the prompt only, so a token of the reply takes as
/// long as without one. Greedy unless --temperature is above 0.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Prompts",
    after_long_help = "Examples:
  reft generate --model models/SmolLM2-135M-Instruct --adapter runs/emoji --chat --prompt 'Who are you?'
  reft generate --model models/SmolLM2-135M-Instruct --input questions.txt --batch-size 16 --json"
)]
pub struct GenerateArgs {
    /// Prompt; used as it is unless --chat, --template or the adapter's own template frames it
    #[arg(long, value_name = "TEXT", required_unless_present = "input", conflicts_with = "input")]
    prompt: Option<String>,
    /// Prompts: a .txt file with one per line, or rows as for `reft train`, with or without completions
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    #[command(flatten)]
    columns: Flags<ColumnOptions>,
    /// The prompt is a user's message: the model's chat template frames it
    #[arg(long, conflicts_with = "template")]
    chat: bool,
    /// Begin the chat with this system message
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Template of a prompt: auto (from the row's form), chat, alpaca or plain
    /// [default: the template that the adapter was trained with, else auto]
    #[arg(long, value_name = "NAME")]
    template: Option<Template>,
    /// Coordinates of ReFT's subspace that the edit may change, such as 0-3 or 0-3,6 [default: the row's, else all]
    #[arg(long, value_name = "LIST")]
    subspace: Option<Coordinates>,
    /// Prompts that are answered at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch_size: usize,
    /// Generate without the adapters too, and show both replies
    #[arg(long)]
    compare_base: bool,
    /// Write prompts and replies as a self-contained HTML page
    #[arg(long, value_name = "FILE.html")]
    page: Option<PathBuf>,
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
        Some(path) => read_prompts(path, args.columns.0.columns.as_ref())?,
    };
    let model = args.model.open_for("reft generate")?;
    let chosen = if args.chat { Some(Template::Chat) } else { args.template };
    let framing = Framing::of(model.trained.as_ref(), chosen, &args.variables.0, &records)?;
    let text = ModelText::open(&model.path, &framing.chat)?;
    let tokenizer = text.tokenizer.as_ref();
    let batch_size = Some(args.batch_size);
    let config = GenerationConfig { batch_size, ..args.sampling.config(tokenizer)? };
    let rows = rows(args, &records, &model, &text, framing.template)?;
    let stack = model.stack()?;
    let base = args.compare_base.then(|| model.base()).transpose()?;
    if let ([row], Some(tokenizer), false, None) = (&rows[..], tokenizer, args.json, &args.page) {
        let sides = [("base model", base.as_ref()), ("with the adapter", Some(&stack))];
        for (side, stack) in sides.into_iter().filter_map(|(side, stack)| Some((side, stack?))) {
            if base.is_some() {
                output::line(format!("[{side}]"))?;
            }
            let reply = ReplyText::new(tokenizer, &config.stop_ids, &args.sampling.stop);
            stream(&model, stack, row, &config, reply, &|| false)?;
            output::piece("\n")?;
        }
        return Ok(());
    }
    let started = Instant::now();
    let context = ContextLimit::of(model.decoder.description(), &stack);
    let lengths = records.iter().zip(&rows).map(|(record, row)| (&record.id, row.input_ids.len()));
    context.generating(config.max_new_tokens).check(lengths)?; // an error names the row as the file does
    let generated = generate(&model, &stack, &rows, &config)?;
    let seconds = started.elapsed().as_secs_f64();
    let tokens: usize = generated.iter().map(|generated| generated.ids.len()).sum();
    let of_base = base.map(|base| generate(&model, &base, &rows, &config)).transpose()?;
    let reply = |generated: &Generated| -> Result<Value> {
        let (text, finish) = said(args, tokenizer, &config, generated)?;
        let mut reply = json!({"ids": generated.ids, "finish": finish});
        if let Some(text) = text {
            reply["text"] = text.into();
        }
        Ok(reply)
    };
    let of_row = |(i, (record, row)): (usize, (&Record, &Row))| -> Result<Value> {
        let mut all = json!({"id": record.id, "prompt_tokens": row.input_ids.len()});
        if let (Some(all), Value::Object(own)) = (all.as_object_mut(), reply(&generated[i])?) {
            all.extend(own);
        }
        if let Some(of_base) = &of_base {
            all["base"] = reply(&of_base[i])?;
        }
        Ok(all)
    };
    let replies = records.iter().zip(&rows).enumerate().map(of_row).collect::<Result<Vec<_>>>()?;
    if let Some(path) = &args.page {
        write_page(path, tokenizer, &rows, &replies)?;
        note(format!("page: {}", path.display()));
    }
    let speed = tokens as f64 / seconds;
    let json =
        json!({"rows": replies, "tokens": tokens, "seconds": seconds, "tokens_per_second": speed});
    output::result(args.json, &json, || {
        records.iter().zip(&replies).try_for_each(|(record, reply)| {
            if reply["base"].is_object() {
                output::line(format!("[{}, base model] {}", record.id, text_of(&reply["base"])))?;
            }
            output::line(format!("[{}] {}", record.id, text_of(reply)))
        })
    })
}

/// The text of a reply, or its ids if it has none.
fn text_of(reply: &Value) -> String {
    let ids = || reply["ids"].to_string();
    reply["text"].as_str().map_or_else(ids, |text| text.trim_end().to_owned())
}

/// Writes a page of prompts, as the model sees them, with the replies in columns.
fn write_page(
    path: &Path,
    tokenizer: Option<&Tokenizer>,
    rows: &[Row],
    replies: &[Value],
) -> Result<()> {
    let prompt = |row: &Row| match tokenizer {
        Some(tokenizer) => tokenizer.decode(&row.input_ids, false),
        None => Ok(format!("{:?}", row.input_ids)),
    };
    let has_base = replies.iter().any(|reply| reply["base"].is_object());
    let of_row = |(row, reply): (&Row, &Value)| -> Result<Vec<String>> {
        let sides = [has_base.then(|| text_of(&reply["base"])), Some(text_of(reply))];
        Ok([Some(prompt(row)?)].into_iter().chain(sides).flatten().collect())
    };
    let cells = rows.iter().zip(replies).map(of_row).collect::<Result<Vec<_>>>()?;
    let (heads, legend): (&[&str], _) = match has_base {
        true => (
            &["prompt", "base model", "with the adapter"],
            "The base model is the model without its adapters.",
        ),
        false => (&["prompt", "reply"], ""),
    };
    let facts = vec![counted(rows.len(), "prompt"), format!("Command: `{}`", command())];
    let page = page("Replies", facts, legend, |out| texts(out, heads, &cells));
    Ok(write_text(path, &page)?)
}

/// The prompts as tokens.
fn rows(
    args: &GenerateArgs,
    records: &[Record],
    model: &Model,
    text: &ModelText,
    template: Template,
) -> Result<Vec<Row>> {
    let methods = model.adapters.iter().map(|adapter| declaration(adapter.method()));
    let is_reft = |method: &MethodDeclaration| method.files == AdapterFiles::Reft;
    if args.subspace.is_some() && !methods.flatten().any(is_reft) {
        bail!("--subspace is for ReFT adapters, and none is given; leave it out");
    }
    let stack = model.stack()?;
    let encoder = text.encoder(template, Turns::Last);
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

/// A copy of a row with the system message, if any, before its messages.
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

/// Generates for all prompts, with a progress bar.
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

/// Above the size of any subspace: a typing error must not fill the memory.
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
