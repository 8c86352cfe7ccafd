//! `reft generate`: replies to prompts.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reft_models::{Finish, Generated, GenerationConfig, Message, Row, Tokenizer, generate_all};
use reft_train::{Content, Record, Template, TextEncoder, read_prompts};
use serde::Serialize;

use crate::coordinates::Coordinates;
use crate::model::{Model, ModelArgs, open_chat_template, open_tokenizer};
use crate::output;
use crate::reply_text::ReplyText;
use crate::sampling_args::SamplingArgs;

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
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// One reply, for scripts.
#[derive(Debug, Serialize)]
struct Reply {
    id: String,
    prompt_tokens: usize,
    /// Absent if the model has no tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// The tokens generated, the end token included.
    ids: Vec<i64>,
    finish: &'static str,
}

/// Runs the command.
pub fn run(args: &GenerateArgs) -> Result<ExitCode> {
    let records = records(args)?;
    let model = args.model.open()?;
    let tokenizer = open_tokenizer(&model.path)?;
    let config = args.sampling.config(tokenizer.as_ref())?;
    let rows = rows(args, &records, &model, tokenizer.as_ref())?;
    let run = Run { args, model: &model, tokenizer: tokenizer.as_ref(), config: &config };
    if let ([row], Some(tokenizer), false) = (&rows[..], &tokenizer, args.json) {
        run.stream(row, tokenizer)?;
    } else {
        run.all(&records, &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The prompts as data rows.
fn records(args: &GenerateArgs) -> Result<Vec<Record>> {
    if let Some(path) = &args.input {
        let is_text = path.extension().is_some_and(|extension| extension == "txt");
        return if is_text { lines(path) } else { Ok(read_prompts(path)?) };
    }
    Ok(vec![record("prompt".to_owned(), args.prompt.clone().unwrap_or_default())])
}

fn lines(path: &Path) -> Result<Vec<Record>> {
    let name = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let records: Vec<Record> =
        lines.map(|(i, line)| record(format!("line {}", i + 1), line.to_owned())).collect();
    if records.is_empty() {
        bail!("{name} holds no prompt; give one a line");
    }
    Ok(records)
}

fn record(id: String, prompt: String) -> Record {
    Record {
        id,
        content: Content::Completion { prompt, completion: String::new() },
        subspace: None,
    }
}

/// The prompts as tokens.
fn rows(
    args: &GenerateArgs,
    records: &[Record],
    model: &Model,
    tokenizer: Option<&Tokenizer>,
) -> Result<Vec<Row>> {
    if args.subspace.is_some() && !model.adapters().iter().any(|adapter| is_reft(adapter.method()))
    {
        bail!("--subspace is for ReFT adapters, and none is given; leave it out");
    }
    let chat_template = open_chat_template(&model.path)?;
    let chosen = if args.chat { Some(Template::Chat) } else { args.template };
    let encoder = tokenizer.map(|tokenizer| TextEncoder {
        tokenizer,
        chat_template: chat_template.as_ref(),
        template: chosen.unwrap_or(Template::Auto),
    });
    let row = |record: &Record| -> Result<Row> {
        let prompt = match (&record.content, &encoder) {
            (Content::Tokens { input_ids, prompt_length, .. }, _) => input_ids
                .get(..*prompt_length)
                .with_context(|| format!("{}: prompt_length is past the end", record.id))?
                .to_vec(),
            (_, Some(encoder)) => encoder.encode(&with_system(record, args.system.as_deref()))?.0,
            (_, None) => bail!(
                "{}: model {} has no tokenizer for text; give input_ids",
                record.id,
                model.path.display()
            ),
        };
        if prompt.is_empty() {
            bail!("{}: the prompt has no token; give at least one", record.id);
        }
        let asked = || args.subspace.as_ref().map(|subspace| subspace.0.clone());
        Ok(Row { subspace: record.subspace.clone().or_else(asked), ..Row::prompt(prompt) })
    };
    records.iter().map(row).collect()
}

/// Whether a method, or one of several joined with `+`, edits a subspace.
fn is_reft(method: &str) -> bool {
    method.split('+').any(|name| name.parse::<reft_core::Method>().is_ok())
}

/// A row with a system message before what the user says.
fn with_system(record: &Record, system: Option<&str>) -> Record {
    let mut record = record.clone();
    let Some(system) = system else { return record };
    let system = Message::new("system", system);
    let said = |user: String, reply: &str| {
        vec![system.clone(), Message::new("user", user), Message::new("assistant", reply)]
    };
    record.content = match record.content {
        Content::Completion { prompt, completion } => Content::Chat(said(prompt, &completion)),
        Content::Instruction { instruction, input, output, .. } if input.is_empty() => {
            Content::Chat(said(instruction, &output))
        }
        Content::Instruction { instruction, input, output, .. } => {
            Content::Chat(said(format!("{instruction}\n\n{input}"), &output))
        }
        Content::Chat(messages) => Content::Chat([vec![system], messages].concat()),
        tokens => tokens,
    };
    record
}

/// Everything that generation needs besides the prompts.
struct Run<'a> {
    args: &'a GenerateArgs,
    model: &'a Model,
    tokenizer: Option<&'a Tokenizer>,
    config: &'a GenerationConfig,
}

impl Run<'_> {
    /// Prints the reply to one prompt as it grows.
    fn stream(&self, row: &Row, tokenizer: &Tokenizer) -> Result<()> {
        let stop = self.args.sampling.stop();
        stream(
            self.model,
            row,
            self.config,
            ReplyText::new(tokenizer, &self.config.stop_ids, stop),
        )?;
        output::piece("\n")
    }

    /// Generates for all prompts, then prints.
    fn all(&self, records: &[Record], rows: &[Row]) -> Result<()> {
        let bar = ProgressBar::new(rows.len() as u64).with_style(
            ProgressStyle::with_template("{bar:30} {pos}/{len} prompts  {msg}  {eta} left")
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        let started = Instant::now();
        let mut tokens = 0u64;
        let mut ended = 0u64;
        let mut lengths = vec![0; rows.len()];
        let on_token = &mut |row: usize, id: i64| {
            tokens += 1;
            lengths[row] += 1;
            if self.config.stop_ids.contains(&id) || lengths[row] == self.config.max_new_tokens {
                ended += 1;
                bar.set_position(ended);
                let speed = tokens as f64 / started.elapsed().as_secs_f64();
                bar.set_message(format!("{speed:.0} tokens/s"));
            }
            ControlFlow::Continue(())
        };
        let (adapters, batch_size) = (self.model.adapters(), self.args.batch_size);
        let generated =
            generate_all(&self.model.decoder, &adapters, rows, batch_size, self.config, on_token);
        bar.finish_and_clear();
        let seconds = started.elapsed().as_secs_f64();
        let parts = records.iter().zip(rows).zip(generated?);
        let replies: Vec<Reply> = parts
            .map(|((record, row), generated)| self.reply(record, row, generated))
            .collect::<Result<_>>()?;
        if self.args.json {
            let speed = tokens as f64 / seconds;
            return output::json(&serde_json::json!({
                "rows": replies,
                "tokens": tokens,
                "seconds": seconds,
                "tokens_per_second": speed,
            }));
        }
        for reply in replies {
            let text = reply.text.unwrap_or_else(|| format!("{:?}", reply.ids));
            output::line(format!("[{}] {}", reply.id, text.trim_end()))?;
        }
        Ok(())
    }

    fn reply(&self, record: &Record, row: &Row, generated: Generated) -> Result<Reply> {
        let mut finish = match generated.finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Cancelled => "cancelled",
        };
        let mut text = None;
        if let Some(tokenizer) = self.tokenizer {
            let stop = self.args.sampling.stop();
            let mut reply = ReplyText::new(tokenizer, &self.config.stop_ids, stop);
            let mut whole = String::new();
            for &id in &generated.ids {
                whole += &reply.push(id)?;
            }
            finish = if reply.is_over() { "stop" } else { finish };
            text = Some(whole + &reply.finish()?);
        }
        let (id, prompt_tokens) = (record.id.clone(), row.input_ids.len());
        Ok(Reply { id, prompt_tokens, text, ids: generated.ids, finish })
    }
}

/// Generates a reply to one prompt and prints it as it grows; returns its text.
///
/// # Errors
/// If generation fails, or stdout is closed.
pub fn stream(
    model: &Model,
    row: &Row,
    config: &GenerationConfig,
    reply: ReplyText,
) -> Result<String> {
    stream_until(model, row, config, reply, &|| false)
}

/// [`stream`], which ends early when `is_cancelled` says so.
///
/// # Errors
/// As [`stream`].
pub fn stream_until(
    model: &Model,
    row: &Row,
    config: &GenerationConfig,
    mut reply: ReplyText,
    is_cancelled: &dyn Fn() -> bool,
) -> Result<String> {
    let mut whole = String::new();
    let mut failed = None;
    let on_token = &mut |_row: usize, id: i64| {
        let printed = reply.push(id).map_err(anyhow::Error::from).and_then(|piece| {
            whole += &piece;
            output::piece(&piece)
        });
        failed = printed.err();
        if failed.is_some() || reply.is_over() || is_cancelled() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    let rows = std::slice::from_ref(row);
    generate_all(&model.decoder, &model.adapters(), rows, 1, config, on_token)?;
    if let Some(failed) = failed {
        return Err(failed);
    }
    let rest = reply.finish()?;
    output::piece(&rest)?;
    Ok(whole + &rest)
}
