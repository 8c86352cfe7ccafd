//! `reft eval`: how well a model does on data.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_bench::{Metric, Scorer, TaskConfig, TaskKind, encode_questions, read_questions};
use reft_train::{Template, TextEncoder, evaluate, read_records};
use serde_json::json;

use crate::examples::ExampleOptions;
use crate::model::{ModelArgs, open_chat_template, open_tokenizer};
use crate::output::{self, grouped};
use crate::train_progress::duration;

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
    /// Longest example in tokens; what is longer is cut at its end [default: the model's context]
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// Leave out examples that have no label left when they are cut, instead of failing
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

/// A task's name or file, checked as far as that goes without reading it.
fn task_name(name: &str) -> Result<PathBuf, String> {
    let names = TaskKind::BUILT_IN.map(|(name, _)| name);
    if names.contains(&name) || name.ends_with(".toml") {
        return Ok(PathBuf::from(name));
    }
    Err(format!("unknown task; use {}, or a TOML file that describes one", names.join(", ")))
}

/// Runs the command.
pub fn run(args: &EvalArgs) -> Result<ExitCode> {
    if args.batch_size == 0 {
        bail!("--batch-size is 0, expected at least 1");
    }
    let task = TaskConfig::open(&args.task)?;
    match task.kind {
        TaskKind::Lm => lm(args)?,
        _ => answers(args, &task)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Accuracy, or the share of tokens that come back.
fn answers(args: &EvalArgs, task: &TaskConfig) -> Result<()> {
    if args.max_length.is_some() || args.drop_too_long {
        bail!("--max-length and --drop-too-long belong to task lm; questions are not cut");
    }
    let questions = read_questions(task, &args.data)?;
    let model = args.model.open()?;
    let tokenizer = open_tokenizer(&model.path)?;
    let chat_template = open_chat_template(&model.path)?;
    let encoder = tokenizer.as_ref().map(|tokenizer| TextEncoder {
        tokenizer,
        chat_template: chat_template.as_ref(),
        template: args.template.unwrap_or(task.template),
    });
    let config = model.decoder.config();
    let context = config.max_position_embeddings as usize;
    let questions =
        encode_questions(task, &questions, encoder.as_ref(), config.vocab_size, context)
            .with_context(|| format!("cannot use {}", args.data.display()))?;
    let stop = AtomicBool::new(false);
    let scorer =
        Scorer { task, tokenizer: tokenizer.as_ref(), batch_size: args.batch_size, stop: &stop };
    let score = scorer.score(&model.decoder, &model.adapters(), &questions)?;
    if args.json {
        return output::json(&json!({
            "task": task.name,
            "metric": score.metric,
            score.metric.name(): score.value,
            "questions": score.questions,
            "seconds": score.seconds,
            "answers": score.answers,
        }));
    }
    let value = match score.metric {
        Metric::Loss => format!("{:.4}", score.value),
        Metric::Accuracy | Metric::Recall => format!("{:.2} %", 100.0 * score.value),
    };
    output::table(&[
        (score.metric.name(), value),
        ("on", format!("{} questions", grouped(score.questions as i64))),
        ("time", duration(score.seconds)),
    ])
}

fn lm(args: &EvalArgs) -> Result<()> {
    let records = read_records(&args.data)?;
    let model = args.model.open()?;
    let tokenizer = open_tokenizer(&model.path)?;
    let chat_template = open_chat_template(&model.path)?;
    let encoder = tokenizer.as_ref().map(|tokenizer| TextEncoder {
        tokenizer,
        chat_template: chat_template.as_ref(),
        template: args.template.unwrap_or(Template::Auto),
    });
    let config = model.decoder.config();
    let max_length = args.max_length.unwrap_or(config.max_position_embeddings as usize);
    let options = ExampleOptions {
        encoder,
        vocab_size: config.vocab_size,
        max_length,
        drop_too_long: args.drop_too_long,
    };
    let examples = options.examples(&records, &args.data)?;
    if examples.is_empty() {
        bail!(
            "{} has no example within {max_length} tokens; raise --max-length",
            args.data.display()
        );
    }
    let started = Instant::now();
    let report = evaluate(&model.decoder, &model.adapters(), &examples, args.batch_size, None)?;
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        return output::json(&json!({
            "task": "lm",
            "loss": report.loss,
            "perplexity": report.perplexity,
            "target_tokens": report.target_tokens,
            "examples": examples.len(),
            "seconds": seconds,
        }));
    }
    output::table(&[
        ("loss", format!("{:.4}", report.loss)),
        ("perplexity", format!("{:.4}", report.perplexity)),
        (
            "on",
            format!(
                "{} target tokens of {} examples",
                grouped(report.target_tokens),
                examples.len()
            ),
        ),
        ("time", duration(seconds)),
    ])
}
