use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use reft_bench::{HeadScorer, TaskConfig, ToldOf};
use reft_models::{Model as _, TaskHead, Weights, write_text};
use reft_train::{
    Encoding, Example, HeadObjective, Labels, Metric, Record, Told, Turns, read_labelled_rows,
    read_preferences,
};
use serde_json::{Value, json};

use crate::eval::command::EvalArgs;
use crate::model::{Framing, Model, ModelText};
use crate::terminal::{duration, grouped, output};

/// Measures how well the head of an adapter predicts the labels of rows.
pub fn told(args: &EvalArgs, task: &TaskConfig, told: Told) -> Result<()> {
    if args.compare_base {
        bail!(
            "--compare-base runs the model without its adapter, whose head was trained with it; measure an adapter of `reft train --method head` instead"
        );
    }
    if args.turns() != Turns::Last || (told != Told::Reward && args.template.is_some()) {
        bail!("--turns and --template frame conversations; a labelled text is taken as it stands");
    }
    let columns = args.columns();
    let read = |path: &PathBuf| match told {
        Told::Reward => read_preferences(path, columns),
        Told::Class | Told::Number => read_labelled_rows(path, task.columns.as_deref(), columns),
    };
    let rows = args.data.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let model = args.model.open()?;
    let head = head_of(&model, task)?;
    HeadObjective::new(told, head.clone())
        .with_context(|| format!("cannot measure the adapter by task {}", task.name))?;
    let labels = Labels::of_head(told, &head);
    let framing = Framing::of(model.trained.as_ref(), args.template, args.chat(), &rows.concat())?;
    let text = ModelText::open(&model.path, &framing.chat)?;
    let encoding = Encoding {
        text: text.encoder(framing.template, Turns::Last),
        vocab_size: model.decoder.description().vocab_size,
        max_length: args.max_length.unwrap_or(usize::MAX),
    };
    let of_file = |(path, rows): (&PathBuf, &Vec<Record>)| {
        let examples = labels.examples(rows, &encoding);
        examples.with_context(|| format!("cannot use {}", path.display()))
    };
    let examples = args.data.iter().zip(&rows).map(of_file).collect::<Result<Vec<_>>>()?.concat();
    let started = Instant::now();
    let stack = model.stack()?;
    let scorer = HeadScorer {
        model: &model.decoder,
        stack: &stack,
        head: &head,
        told,
        batch_size: args.batch_size,
    };
    let score = scorer.score(&examples)?;
    let seconds = started.elapsed().as_secs_f64();
    if let Some(file) = &args.predictions {
        write_predictions(file, &examples, &score.told, &labels)?;
    }
    let mut json = json!({ "task": task.name, "examples": examples.len(), "seconds": seconds });
    if !labels.classes().is_empty() {
        json["classes"] = json!(labels.classes());
    }
    let mut lines = Vec::new();
    for (metric, value) in score.measures {
        json[metric.name()] = json!(value);
        let text = match metric {
            Metric::Accuracy | Metric::F1 => format!("{:.2} %", 100.0 * value),
            _ => format!("{value:.4}"),
        };
        lines.push((metric.title(), text));
    }
    lines.push(("on", format!("{} examples", grouped(examples.len() as i64))));
    lines.push(("time", duration(seconds)));
    output::result(args.json, &json, || output::table(&lines))
}

/// The only task head among a model's adapters.
fn head_of(model: &Model, task: &TaskConfig) -> Result<TaskHead> {
    let weights = Weights::open(&model.path)?;
    let mut found = None;
    for directory in &model.directories {
        let Some(head) = reft_methods::read_head(directory, &model.decoder, &weights)? else {
            continue;
        };
        if found.replace(head).is_some() {
            bail!("two of the adapters have a head; give one of them");
        }
    }
    found.with_context(|| {
        format!(
            "task {} measures a head, and none of the adapters has one; give --adapter with an adapter of `reft train --objective {}`",
            task.name, task.kind
        )
    })
}

/// Writes the prediction for each row, a line of JSON each.
fn write_predictions(
    file: &Path,
    examples: &[Example],
    told: &[ToldOf],
    labels: &Labels,
) -> Result<()> {
    let class = |i: usize| &labels.classes()[i];
    let line = |(example, told): (&Example, &ToldOf)| -> String {
        let mut line: Value = match *told {
            ToldOf::Class { class: found, score, expected } => {
                json!({ "label": class(found), "score": score, "expected": class(expected) })
            }
            ToldOf::Number { score, expected } => json!({ "score": score, "expected": expected }),
            ToldOf::Rewards { chosen, rejected } => {
                json!({ "chosen": chosen, "rejected": rejected })
            }
        };
        line["id"] = json!(example.id);
        format!("{line}\n")
    };
    let lines: String = examples.iter().zip(told).map(line).collect();
    Ok(write_text(file, &lines)?)
}
