//! `reft eval`: how well a model does on data.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_bench::{Metric, Scorer, TaskConfig, TaskKind, encode_questions, read_questions};
use reft_models::{ChatOptions, ContextLimit, Model};
use reft_train::{
    Encoding, Learner, LossReport, NextToken, Template, TurnOptions, Turns, read_records,
};
use serde_json::json;

use crate::model::{ModelArgs, ModelText, examples};
use crate::options::{Declared, FlagGroup, Flags, check_counts};
use crate::terminal::{duration, grouped, output};

/// Measure a model, with or without adapters, on a data file
///
/// Task `lm`: loss, the mean of −log p over the completions' tokens and end tokens, and perplexity, e to the loss. `commonsense` and
/// `arithmetic`: accuracy on rows of LLM-Adapters, of what is generated. `memorise`: share of the completions' tokens that come back
/// before the first wrong one. A TOML file describes any other task: a prompt with {columns}, label words, how answers are scored.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Task",
    after_long_help = "Example:
  reft eval --model models/SmolLM2-135M-Instruct --adapter runs/emoji --task lm --data examples/emoji.jsonl --json
  reft eval --model models/SmolLM2-135M-Instruct --task recipes/tasks/sst2.toml --data data/sst2/test.tsv"
)]
pub struct EvalArgs {
    /// What is measured: lm, commonsense, arithmetic, memorise, or a TOML file that describes a task
    #[arg(long, value_name = "NAME", value_parser = task_name)]
    task: PathBuf,
    /// Examples, as `reft train` takes them; for other tasks than lm and memorise JSON, JSONL, TSV or CSV with the task's columns
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// How a row becomes text: auto, chat, alpaca or plain [default: auto = as the row's form suggests]
    #[arg(long, value_name = "NAME")]
    template: Option<Template>,
    #[command(flatten)]
    turns: Flags<TurnOptions>,
    #[command(flatten)]
    chat: Flags<ChatOptions>,
    /// Longest example in tokens; what is longer is cut at its end [default: none is cut, and one past the model's context refused]
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// Cut at the model's context, or at --max-length, and leave out examples that have no label left, instead of failing
    #[arg(long)]
    drop_too_long: bool,
    /// Examples computed at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch_size: usize,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
}

impl FlagGroup for TurnOptions {
    fn declared() -> Vec<Declared> {
        Declared::of::<Self>()
    }
}

/// A task's name or file, checked as far as that goes without reading it.
fn task_name(name: &str) -> Result<PathBuf, String> {
    let names = TaskKind::BUILT_IN.map(TaskKind::name);
    if names.contains(&name) || name.ends_with(".toml") {
        return Ok(PathBuf::from(name));
    }
    Err(format!("unknown task; use {}, or a TOML file that describes one", names.join(", ")))
}

/// Runs the command.
pub fn run(args: &EvalArgs) -> Result<()> {
    check_counts([
        ("--batch-size", args.batch_size),
        ("--max-length", args.max_length.unwrap_or(1)),
    ])?;
    let task = TaskConfig::open(&args.task)?;
    match task.kind {
        TaskKind::Lm => lm(args),
        _ => answers(args, &task),
    }
}

/// Accuracy, or the share of tokens that come back.
fn answers(args: &EvalArgs, task: &TaskConfig) -> Result<()> {
    if args.max_length.is_some() || args.drop_too_long {
        bail!("--max-length and --drop-too-long belong to task lm; questions are not cut");
    }
    if args.turns.0.turns != Turns::Last {
        bail!("--turns belongs to task lm; a question is one turn");
    }
    let questions = read_questions(task, &args.data)?;
    let model = args.model.open()?;
    let chat_vars = task.chat_vars.overlaid(&args.chat.0.chat_vars);
    let text = ModelText::open(&model.path, &ChatOptions { chat_vars })?;
    let encoding = encoding(args, &text, task.template, &model.decoder, usize::MAX);
    let questions = encode_questions(task, &questions, &encoding)
        .with_context(|| format!("cannot use {}", args.data.display()))?;
    let (tokenizer, stop) = (text.tokenizer.as_ref(), AtomicBool::new(false));
    let scorer = Scorer { task, tokenizer, batch_size: args.batch_size, stop: &stop };
    let learner = Learner::new(&model.decoder, &model.stack()?, &NextToken);
    let score = scorer.score(&learner, &questions)?;
    let metric = score.metric;
    let value = match metric {
        Metric::Loss => format!("{:.4}", score.value),
        Metric::Accuracy | Metric::Recall => format!("{:.2} %", 100.0 * score.value),
    };
    let json = json!({
        "task": task.name,
        "metric": metric,
        metric.name(): score.value,
        "questions": score.questions,
        "seconds": score.seconds,
        "answers": score.answers,
    });
    let on = format!("{} questions", grouped(score.questions as i64));
    let rows = [(metric.name(), value), ("on", on), ("time", duration(score.seconds))];
    output::result(args.json, &json, || output::table(&rows))
}

/// How rows become tokens.
fn encoding<'a>(
    args: &EvalArgs,
    text: &'a ModelText,
    template: Template,
    model: &dyn Model,
    max_length: usize,
) -> Encoding<'a> {
    let text = text.encoder(args.template.unwrap_or(template), args.turns.0.turns);
    Encoding { text, vocab_size: model.description().vocab_size, max_length }
}

fn lm(args: &EvalArgs) -> Result<()> {
    let records = read_records(&args.data)?;
    let model = args.model.open()?;
    let text = ModelText::open(&model.path, &args.chat.0)?;
    let stack = model.stack()?;
    let room = ContextLimit::of(model.decoder.description(), &stack).room();
    let usual = if args.drop_too_long { room } else { usize::MAX };
    let max_length = args.max_length.unwrap_or(usual);
    let encoding = encoding(args, &text, Template::Auto, &model.decoder, max_length);
    let examples = examples(&records, &args.data, &encoding, args.drop_too_long)?;
    if examples.is_empty() {
        let data = args.data.display();
        bail!("{data} has no example within {max_length} tokens; raise --max-length");
    }
    let started = Instant::now();
    let learner = Learner::new(&model.decoder, &stack, &NextToken);
    let report = learner.evaluate(&examples, args.batch_size, None)?;
    let LossReport { loss, perplexity, target_tokens } = report;
    let (n, seconds) = (examples.len(), started.elapsed().as_secs_f64());
    let json = json!({
        "task": "lm",
        "loss": loss,
        "perplexity": perplexity,
        "target_tokens": target_tokens,
        "examples": n,
        "seconds": seconds,
    });
    let rows = [
        ("loss", format!("{loss:.4}")),
        ("perplexity", format!("{perplexity:.4}")),
        ("on", format!("{} target tokens of {n} examples", grouped(target_tokens))),
        ("time", duration(seconds)),
    ];
    output::result(args.json, &json, || output::table(&rows))
}
