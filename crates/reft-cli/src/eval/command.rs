use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_bench::{Scorer, TaskConfig, TaskKind, encode_questions, read_questions};
use reft_models::{AdapterStack, ChatOptions, ContextLimit, Model};
use reft_train::{
    ColumnNames, ColumnOptions, Encoding, Example, KeepingClose, Learner, LossReport, Metric,
    NEXT_TOKEN, NextToken, Objective, Part, Record, Template, TurnOptions, Turns, read_records,
};
use serde_json::json;

use crate::eval::head;
use crate::model::{FileRows, Framing, ModelArgs, ModelText};
use crate::options::{Declared, FlagGroup, Flags, check_counts};
use crate::terminal::{duration, grouped, output};

/// Measure a model, with or without adapters, on a data file
///
/// Task `lm` reports the loss and the perplexity. The loss is the mean of −log p over the completions' tokens and end tokens; the perplexity
/// is e to the loss. `commonsense` and `arithmetic` report the accuracy of generated replies on rows of LLM-Adapters. `memorise` reports the
/// share of the completions' tokens that the model reproduces before its first wrong token. `classification`, `regression` and `reward`
/// compare the predictions of an adapter's head with labelled texts or pairs: accuracy, F1 and Matthews' correlation, or Pearson's and
/// Spearman's correlations. `preference` reports the share of pairs in which the chosen reply is the likelier one. A TOML file describes any
/// other task: a prompt with {columns}, label words, and how answers are scored.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Task",
    after_long_help = "Example:
  reft eval --model models/SmolLM2-135M-Instruct --adapter runs/emoji --task lm --data examples/emoji.jsonl --json
  reft eval --model models/SmolLM2-135M-Instruct --task recipes/tasks/sst2.toml --data data/sst2/test.tsv"
)]
pub struct EvalArgs {
    /// Task: lm, commonsense, arithmetic, memorise, classification, regression, reward, preference,
    /// or a TOML file that describes a task
    #[arg(long, value_name = "NAME", value_parser = task_name)]
    task: PathBuf,
    /// Data file, in a form that `reft train` takes; give it several times for several files
    ///
    /// Tasks other than lm and memorise need the columns of the task.
    #[arg(long, value_name = "FILE", required = true)]
    pub(super) data: Vec<PathBuf>,
    #[command(flatten)]
    columns: Flags<ColumnOptions>,
    /// Template of a row: auto (from the row's form), chat, alpaca or plain
    /// [default: the template that the adapter was trained with, else auto]
    #[arg(long, value_name = "NAME")]
    pub(super) template: Option<Template>,
    #[command(flatten)]
    turns: Flags<TurnOptions>,
    #[command(flatten)]
    chat: Flags<ChatOptions>,
    /// Longest example in tokens; longer ones are cut at their end [default: no cut]
    ///
    /// Without a cut, an example longer than the model's context is an error.
    #[arg(long, value_name = "N")]
    pub(super) max_length: Option<usize>,
    /// Cut long examples, and leave out those with no label left, instead of failing
    ///
    /// The limit is --max-length, or else the model's context.
    #[arg(long)]
    drop_too_long: bool,
    /// Examples computed at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(super) batch_size: usize,
    /// Measure the model without its adapters too, and print both results
    ///
    /// Tasks lm and preference also print the divergence from the model without adapters.
    #[arg(long)]
    pub(super) compare_base: bool,
    /// Tasks of a head: write the head's prediction for each row to this file, one line of JSON per row
    #[arg(long, value_name = "FILE")]
    pub(super) predictions: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) model: ModelArgs,
}

impl EvalArgs {
    /// The meaning of the data's columns.
    pub(super) fn columns(&self) -> Option<&ColumnNames> {
        self.columns.0.columns.as_ref()
    }

    /// Which turns of conversations are measured.
    pub(super) fn turns(&self) -> Turns {
        self.turns.0.turns
    }

    /// The chat template's variables.
    pub(super) fn chat(&self) -> &ChatOptions {
        &self.chat.0
    }
}

impl FlagGroup for ColumnOptions {
    fn declared() -> Vec<Declared> {
        Declared::of::<Self>()
    }
}

impl FlagGroup for TurnOptions {
    fn declared() -> Vec<Declared> {
        Declared::of::<Self>()
    }
}

/// Checks a task's name, or the ending of its file's name. The file is not read.
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
    if args.predictions.is_some() && task.kind.told().is_none() {
        bail!("--predictions is of tasks classification, regression and reward; leave it out");
    }
    match task.kind {
        TaskKind::Lm => lm(args),
        kind => match kind.told() {
            Some(told) => head::told(args, &task, told),
            None => answers(args, &task),
        },
    }
}

/// Measures a task of questions by its metric, such as accuracy.
fn answers(args: &EvalArgs, task: &TaskConfig) -> Result<()> {
    if args.max_length.is_some() || args.drop_too_long {
        bail!("--max-length and --drop-too-long belong to task lm; questions are not cut");
    }
    if args.turns() != Turns::Last {
        bail!("--turns belongs to task lm; a question is one turn");
    }
    let columns = args.columns();
    let questions = args.data.iter().map(|path| read_questions(task, path, columns));
    let questions = questions.collect::<Result<Vec<_>, _>>()?.concat();
    let model = args.model.open_for("reft eval")?;
    let chat_vars = task.chat_vars.overlaid(&args.chat().chat_vars);
    let asked = args.template.or(Some(task.template).filter(|own| *own != Template::Auto));
    let rows: Vec<Record> = questions.iter().map(|question| question.record.clone()).collect();
    let framing = Framing::of(model.trained.as_ref(), asked, &ChatOptions { chat_vars }, &rows)?;
    let text = ModelText::open(&model.path, &framing.chat)?;
    let encoding = encoding(args, &text, framing.template, &model.decoder, usize::MAX);
    let questions = encode_questions(task, &questions, &encoding)
        .with_context(|| format!("cannot use {}", names(&args.data)))?;
    let (tokenizer, stop) = (text.tokenizer.as_ref(), AtomicBool::new(false));
    let scorer = Scorer { task, tokenizer, batch_size: args.batch_size, stop: &stop };
    let base = args.compare_base.then(|| model.base()).transpose()?;
    let score = |stack: &AdapterStack| {
        scorer.score(&Learner::new(&model.decoder, stack, &NextToken), &questions)
    };
    let (base, score) = (base.map(|base| score(&base)).transpose()?, score(&model.stack()?)?);
    let metric = score.metric;
    let text = |value: f64| match metric {
        metric if metric.is_share() => format!("{:.2} %", 100.0 * value),
        _ => format!("{value:.4}"),
    };
    let mut json = json!({
        "task": task.name,
        "metric": metric,
        metric.name(): score.value,
        "questions": score.questions,
        "seconds": score.seconds,
        "answers": score.answers,
    });
    if let Some(margin) = score.margin {
        json["margin"] = json!(margin);
    }
    let on = format!("{} questions", grouped(score.questions as i64));
    let mut rows = vec![(metric.name(), text(score.value))];
    rows.extend(score.margin.map(|margin| ("margin", format!("{margin:.4}"))));
    if let Some(base) = base {
        json["base"] = json!({ metric.name(): base.value, "answers": base.answers });
        rows.push(("base model", text(base.value)));
        let points = match metric {
            Metric::Loss => format!("{:+.4}", score.value - base.value),
            _ => format!("{:+.2} points", 100.0 * (score.value - base.value)),
        };
        rows.push(("difference", points));
        if let Some(margin) = base.margin {
            json["base"]["margin"] = json!(margin);
            rows.push(("margin of the base model", format!("{margin:.4}")));
            let keeping = divergence();
            let examples: Vec<Example> =
                questions.iter().map(|question| question.example.clone()).collect();
            let report = Learner::new(&model.decoder, &model.stack()?, &keeping).evaluate(
                &examples,
                args.batch_size,
                None,
            )?;
            let kl = report.measured[KL];
            json[KL] = json!(kl);
            rows.push((KL, format!("{kl:.4}")));
        }
    }
    rows.extend([("on", on), ("time", duration(score.seconds))]);
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
    let text = text.encoder(template, args.turns());
    Encoding { text, vocab_size: model.description().vocab_size, max_length }
}

/// The names of the files, for messages.
fn names(files: &[PathBuf]) -> String {
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    names.join(", ")
}

/// The name of the divergence from the frozen model.
const KL: &str = "kl";

/// The next-token objective with the divergence from the frozen model over the whole vocabulary.
fn divergence() -> KeepingClose<'static> {
    KeepingClose::new(&NextToken, 1.0, 0, Part::Task)
}

fn lm(args: &EvalArgs) -> Result<()> {
    let columns = args.columns();
    let records = args.data.iter().map(|path| read_records(path, columns));
    let records = records.collect::<Result<Vec<_>, _>>()?;
    let model = args.model.open_for("reft eval")?;
    let (trained, rows) = (model.trained.as_ref(), records.concat());
    let framing = Framing::of(trained, args.template, args.chat(), &rows)?;
    let text = ModelText::open(&model.path, &framing.chat)?;
    let stack = model.stack()?;
    let room = ContextLimit::of(model.decoder.description(), &stack).room();
    let usual = if args.drop_too_long { room } else { usize::MAX };
    let max_length = args.max_length.unwrap_or(usual);
    let encoding = encoding(args, &text, framing.template, &model.decoder, max_length);
    let of_file = |(path, records): (&PathBuf, &Vec<Record>)| {
        let rows = FileRows { records, file: path, labels: None };
        rows.examples(&NEXT_TOKEN, &encoding, args.drop_too_long)
    };
    let examples =
        args.data.iter().zip(&records).map(of_file).collect::<Result<Vec<_>>>()?.concat();
    if examples.is_empty() {
        let data = names(&args.data);
        bail!("{data} has no example within {max_length} tokens; raise --max-length");
    }
    let started = Instant::now();
    let base = args.compare_base.then(|| model.base()).transpose()?;
    let measure = |stack: &AdapterStack, objective: &dyn Objective| {
        Learner::new(&model.decoder, stack, objective).evaluate(&examples, args.batch_size, None)
    };
    let (next, keeping) = (NextToken, divergence());
    let beside: &dyn Objective = if base.is_some() { &keeping } else { &next };
    let LossReport { target_tokens, measured, .. } = measure(&stack, beside)?;
    let loss = measured[NextToken.name()];
    let perplexity = loss.exp();
    let base = base.map(|base| measure(&base, &next)).transpose()?;
    let (n, seconds) = (examples.len(), started.elapsed().as_secs_f64());
    let mut json = json!({
        "task": "lm",
        "loss": loss,
        "perplexity": perplexity,
        "target_tokens": target_tokens,
        "examples": n,
        "seconds": seconds,
    });
    let mut rows = vec![("loss", format!("{loss:.4}")), ("perplexity", format!("{perplexity:.4}"))];
    if let Some(base) = base {
        json["base"] = json!({ "loss": base.loss, "perplexity": base.perplexity });
        rows.push(("base model", format!("{:.4}, perplexity {:.4}", base.loss, base.perplexity)));
        rows.push(("difference", format!("{:+.4}", loss - base.loss)));
        let kl = measured[KL];
        json[KL] = json!(kl);
        rows.push((KL, format!("{kl:.4} nats per token, from the base model")));
    }
    rows.extend([
        ("on", format!("{} target tokens of {n} examples", grouped(target_tokens))),
        ("time", duration(seconds)),
    ]);
    output::result(args.json, &json, || output::table(&rows))
}
