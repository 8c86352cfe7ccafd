//! Training runs as a page: curves, sample replies and options of one run, or of several to compare.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use reft_models::{io_error, read_text};
use reft_report::{
    COLOURS, Curve, Names, Scale, counted, curves, escape, figure, grouped, page, running_mean,
    running_mean_steps, seconds, texts,
};
use reft_train::{Best, Metric, StepStats, ValidationStats};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use toml::Table;

use crate::{Error, Result};

/// The files of a training run so far.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingRun {
    /// The directory's name.
    pub name: String,
    /// The options in force.
    pub options: Table,
    /// Every step.
    pub steps: Vec<StepStats>,
    /// Every validation.
    pub validations: Vec<ValidationStats>,
    /// Replies to sample prompts.
    pub samples: Vec<SampleReply>,
}

/// A reply to a sample prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleReply {
    /// Steps taken before it; absent: the reply of the base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    /// The prompt.
    pub prompt: String,
    /// The reply.
    pub reply: String,
}

impl TrainingRun {
    /// Name of the file with a row per step and per validation.
    pub const METRICS: &str = "metrics.jsonl";
    /// Name of the file with the options in force.
    pub const OPTIONS: &str = "train.toml";
    /// Name of the file with the replies to sample prompts.
    pub const SAMPLES: &str = "samples.jsonl";
    /// Name of the run's page.
    pub const PAGE: &str = "report.html";

    /// Reads the files of a run that may still be running; an incomplete last row is left out.
    ///
    /// # Errors
    /// If there is no run, or a row is not a row of metrics or samples.
    pub fn read(directory: &Path) -> Result<Self> {
        let text = |name: &str| Ok::<_, Error>(read_text(&directory.join(name))?);
        let options = text(Self::OPTIONS)?;
        let options: Table = options.parse().map_err(|error| {
            reft_models::toml_error(&options, &directory.join(Self::OPTIONS), &error)
        })?;
        let (mut steps, mut validations) = (Vec::new(), Vec::new());
        for (line, row) in rows(&text(Self::METRICS)?) {
            let is_validation = row.get("validation_loss").is_some();
            let read = match is_validation {
                true => serde_json::from_value(row).map(|row| validations.push(row)),
                false => serde_json::from_value(row).map(|row| steps.push(row)),
            };
            read.map_err(|error| broken(directory, Self::METRICS, line, &error))?;
        }
        let mut samples = Vec::new();
        if directory.join(Self::SAMPLES).exists() {
            for (line, row) in rows(&text(Self::SAMPLES)?) {
                let row = serde_json::from_value(row);
                samples.push(row.map_err(|error| broken(directory, Self::SAMPLES, line, &error))?);
            }
        }
        let whole = fs::canonicalize(directory).map_err(io_error("read", directory))?;
        let name = whole.file_name().map_or("run".into(), |name| name.to_string_lossy());
        Ok(Self { name: name.into_owned(), options, steps, validations, samples })
    }

    fn option(&self, name: &str) -> String {
        match self.options.get(name) {
            Some(toml::Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => "–".to_owned(),
        }
    }

    /// The last part of a path, so that no page says where a machine keeps its files.
    fn file(&self, option: &str) -> String {
        let path = self.option(option);
        let name = Path::new(&path).file_name().map(|name| name.to_string_lossy().into_owned());
        name.unwrap_or(path)
    }

    /// Wall time of all steps.
    pub fn seconds(&self) -> f64 {
        self.steps.iter().map(|step| step.seconds).sum()
    }

    fn tokens_per_second(&self) -> f64 {
        let tokens: usize = self.steps.iter().map(|step| step.tokens).sum();
        tokens as f64 / self.seconds().max(1e-9)
    }

    /// The adapter that is kept: the last one marked as the best so far. In older files without marks: the one with the lowest loss after a step.
    pub fn best(&self) -> Option<Best> {
        let marked = self.validations.iter().rev().find(|validation| validation.is_best);
        let after_a_step = || self.validations.iter().filter(|validation| validation.step > 0);
        let lowest =
            || after_a_step().min_by(|a, b| a.validation_loss.total_cmp(&b.validation_loss));
        let kept = marked.or_else(lowest)?;
        let metric = self.options.get("best").and_then(|name| name.as_str()?.parse().ok());
        let chosen_by =
            metric.and_then(|metric: Metric| Some((metric, *kept.measured.get(metric.name())?)));
        Some(Best { step: kept.step, validation_loss: kept.validation_loss, chosen_by })
    }

    fn row(&self) -> Vec<String> {
        let loss =
            |step: Option<&StepStats>| step.map_or("–".into(), |s| format!("{:.4}", s.loss));
        let best = self.best().map_or("–".to_owned(), |best| best.to_string());
        vec![
            self.name.clone(),
            self.option("method"),
            self.file("model"),
            self.file("data"),
            self.steps.last().map_or(0, |step| step.step).to_string(),
            loss(self.steps.first()),
            loss(self.steps.last()),
            best,
            seconds(self.seconds()),
            grouped(self.tokens_per_second() as i64),
        ]
    }
}

/// Rows of JSON with their line numbers; a row cut short at the end is left out.
fn rows(text: &str) -> impl Iterator<Item = (usize, Value)> {
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    (1..).zip(whole).map(|(n, line)| (n, serde_json::from_str(line).unwrap_or_default()))
}

fn broken(directory: &Path, file: &str, line: usize, error: &serde_json::Error) -> Error {
    let reason = format!("no row of a run: {}", reft_models::plain_reason(error));
    reft_models::Error::Line { path: directory.join(file), line, reason }.into()
}

/// Runs as one self-contained page; `command` is the command that writes it again.
pub fn runs_page(runs: &[TrainingRun], command: &str) -> String {
    let title = match runs {
        [run] => format!("Training run {}", run.name),
        runs => format!("{} training runs", runs.len()),
    };
    let facts = vec![
        match runs {
            [run] => format!(
                "`{}` on {}, trained on {}",
                run.option("method"),
                run.file("model"),
                run.file("data")
            ),
            runs => format!("{} runs on one page", runs.len()),
        },
        match runs {
            [run] => format!(
                "{} in {}, {} tokens a second",
                counted(run.steps.len(), "step"),
                seconds(run.seconds()),
                grouped(run.tokens_per_second() as i64)
            ),
            _ => "A colour for each run".to_owned(),
        },
        format!("Command: `{command}`"),
    ];
    page(&title, facts, LEGEND, |out| {
        writeln!(out, "<h2>Results</h2>")?;
        table(out, &HEADS, runs.iter().map(TrainingRun::row))?;
        plots(out, runs)?;
        for run in runs.iter().filter(|run| !run.samples.is_empty()) {
            writeln!(out, "<h2>Replies{}</h2>", of_run(runs, run))?;
            replies(out, run)?;
        }
        options(out, runs)
    })
}

const LEGEND: &str = "The loss of a step is measured before its update. Validation is the loss on held-out examples; the adapter with the lowest loss is kept, or the best one by another metric, if the run has one. Tokens are those that go through the model, padding not among them. Memory is that of the process on the machine, not on a GPU.";

const HEADS: [&str; 10] = [
    "run",
    "method",
    "model",
    "data",
    "steps",
    "first loss",
    "last loss",
    "best validation",
    "training",
    "tokens/s",
];

fn of_run(runs: &[TrainingRun], run: &TrainingRun) -> String {
    if runs.len() > 1 { format!(" of {}", escape(&run.name)) } else { String::new() }
}

fn table(
    out: &mut String,
    heads: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
) -> std::fmt::Result {
    let line = |tag: &str, cells: &mut dyn Iterator<Item = &str>| -> String {
        cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
    };
    let heads = line("th", &mut heads.iter().copied());
    writeln!(out, "<div class=\"scroll\"><table><thead><tr>{heads}</tr></thead><tbody>")?;
    for row in rows {
        writeln!(out, "<tr>{}</tr>", line("td", &mut row.iter().map(String::as_str)))?;
    }
    writeln!(out, "</tbody></table></div>")
}

/// A number of a step.
type OfStep = fn(&StepStats) -> Option<f64>;

fn plots(out: &mut String, runs: &[TrainingRun]) -> std::fmt::Result {
    let steps = runs.iter().map(|run| run.steps.len()).max().unwrap_or(0);
    if steps == 0 {
        return writeln!(out, "<p>No step has been taken yet.</p>");
    }
    writeln!(out, "<h2>Curves</h2>\n<div class=\"plots\">")?;
    let mean = format!("Running mean over {}", counted(running_mean_steps(steps), "step"));
    let measures: [(&str, &str, &str, Scale, OfStep); 5] = [
        ("Training loss", "loss", "; the left axis is logarithmic.", Scale::Log, |s| Some(s.loss)),
        ("Gradient norm", "norm", ", before clipping; logarithmic.", Scale::Log, |s| {
            Some(s.grad_norm)
        }),
        ("Learning rate", "rate", "", Scale::Linear, |s| Some(s.lr)),
        ("Speed", "tokens/s", ".", Scale::Linear, |s| Some(s.tokens as f64 / s.seconds)),
        ("Memory", "GB", "", Scale::Linear, |s| Some(s.memory? as f64 / 1e9)),
    ];
    for (title, name, note, scale, value) in measures {
        let is_mean = !note.is_empty();
        let curve = |(i, run): (usize, &TrainingRun)| {
            let values = run.steps.iter().filter_map(|step| Some((step.step, value(step)?)));
            let (at, values): (Vec<usize>, Vec<f64>) = values.unzip();
            let values = if is_mean { running_mean(&values) } else { values };
            let points = at.into_iter().map(|step| step as f64).zip(values).collect();
            Curve { label: run.name.clone(), colour: i % COLOURS, points }
        };
        let note = if is_mean { format!("{mean}{note}") } else { "Of each step.".to_owned() };
        draw(out, title, &note, (name, scale), runs.iter().enumerate().map(curve))?;
        if title == "Training loss" {
            let note = "On the examples held out; the left axis is logarithmic.";
            let curve = |(i, run): (usize, &TrainingRun)| {
                let points = run.validations.iter().map(|v| (v.step as f64, v.validation_loss));
                Curve { label: run.name.clone(), colour: i % COLOURS, points: points.collect() }
            };
            let curves = runs.iter().enumerate().map(curve);
            draw(out, "Validation loss", note, ("loss", Scale::Log), curves)?;
            terms(out, runs, &mean)?;
        }
    }
    writeln!(out, "</div>")
}

/// A figure for each entry of the steps' `terms`: terms of the loss, and further measures.
fn terms(out: &mut String, runs: &[TrainingRun], mean: &str) -> std::fmt::Result {
    let steps = runs.iter().flat_map(|run| &run.steps);
    let names: BTreeSet<&String> = steps.flat_map(|step| step.terms.keys()).collect();
    for name in names {
        let curve = |(i, run): (usize, &TrainingRun)| {
            let values =
                run.steps.iter().filter_map(|s| Some((s.step as f64, *s.terms.get(name)?)));
            let (at, values): (Vec<f64>, Vec<f64>) = values.unzip();
            let points = at.into_iter().zip(running_mean(&values)).collect();
            Curve { label: run.name.clone(), colour: i % COLOURS, points }
        };
        let note = format!("{mean}; before its weight in the loss.");
        let curves = runs.iter().enumerate().map(curve);
        draw(out, name, &note, (name, Scale::Linear), curves)?;
    }
    Ok(())
}

/// Draws a figure of the curves that have points; nothing if none has.
fn draw(
    out: &mut String,
    title: &str,
    note: &str,
    (name, scale): (&str, Scale),
    of_runs: impl Iterator<Item = Curve>,
) -> std::fmt::Result {
    let drawn: Vec<Curve> = of_runs.filter(|curve| curve.points.len() > 1).collect();
    if drawn.is_empty() {
        return Ok(());
    }
    let plot = curves(&drawn, &Names { x: "step", y: name }, scale);
    let legend = if drawn.len() > 1 { &drawn[..] } else { &[] };
    figure(out, title, note, &plot, legend)
}

/// A row for each prompt: the base model's reply, and the adapter's at some of the steps.
fn replies(out: &mut String, run: &TrainingRun) -> std::fmt::Result {
    let steps: BTreeSet<usize> = run.samples.iter().filter_map(|sample| sample.step).collect();
    let steps: Vec<usize> = steps.into_iter().collect();
    let shown: Vec<Option<usize>> = match &steps[..] {
        [first, .., middle, last] => {
            let middle = if steps.len() > 4 { &steps[steps.len() / 2] } else { middle };
            vec![None, Some(*first), Some(*middle), Some(*last)]
        }
        few => [None].into_iter().chain(few.iter().copied().map(Some)).collect(),
    };
    let mut prompts: Vec<&str> = Vec::new();
    for sample in &run.samples {
        if !prompts.contains(&sample.prompt.as_str()) {
            prompts.push(&sample.prompt);
        }
    }
    let reply = |prompt: &str, step: Option<usize>| {
        let found = run.samples.iter().rfind(|s| s.prompt == prompt && s.step == step);
        found.map_or(String::new(), |sample| sample.reply.clone())
    };
    let row = |prompt: &&str| {
        let replies = shown.iter().map(|step| reply(prompt, *step));
        [(*prompt).to_owned()].into_iter().chain(replies).collect::<Vec<_>>()
    };
    let head = |step: &Option<usize>| match step {
        None => "base model".to_owned(),
        Some(step) => format!("after step {step}"),
    };
    let heads: Vec<String> =
        ["prompt".to_owned()].into_iter().chain(shown.iter().map(head)).collect();
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    texts(out, &heads, &prompts.iter().map(row).collect::<Vec<_>>())
}

/// Options of one run; of several runs, the options that differ.
fn options(out: &mut String, runs: &[TrainingRun]) -> std::fmt::Result {
    const PATHS: [&str; 8] = [
        "model",
        "data",
        "validation_data",
        "replay",
        "output",
        "config",
        "init_adapter",
        "reuse_dir",
    ];
    let mut names: Vec<&String> = Vec::new();
    for name in runs.iter().flat_map(|run| run.options.keys()) {
        if !names.contains(&name) && !PATHS.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let differs = |name: &&&String| {
        runs.len() == 1 || runs.iter().any(|run| run.option(name) != runs[0].option(name))
    };
    let row = |name: &&String| {
        let values = runs.iter().map(|run| run.option(name));
        [name.replace('_', "-")].into_iter().chain(values).collect::<Vec<_>>()
    };
    let rows: Vec<Vec<String>> = names.iter().filter(differs).map(row).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let title = if runs.len() > 1 { "Options that differ" } else { "Options" };
    writeln!(out, "<h2>{title}</h2>")?;
    let heads: Vec<&str> =
        ["option"].into_iter().chain(runs.iter().map(|run| run.name.as_str())).collect();
    table(out, &heads, rows.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

    fn written(directory: &Path, lr: f64, tail: &str) -> TestResult {
        fs::create_dir(directory)?;
        let options = format!(
            "model = \"/data/she/models/tiny\"\nmethod = \"loreft\"\nlr = {lr}\nseed = 0\n"
        );
        fs::write(directory.join(TrainingRun::OPTIONS), options)?;
        let step = |i: usize| {
            let loss = 2.0 / i as f64;
            format!(
                "{{\"step\":{i},\"epoch\":0.5,\"loss\":{loss},\"lr\":{lr},\"grad_norm\":1.5,\"tokens\":100,\"target_tokens\":10,\"seconds\":0.5}}\n"
            )
        };
        let validation = |step: usize, loss: f64| {
            format!(
                "{{\"step\":{step},\"validation_loss\":{loss},\"target_tokens\":9,\"seconds\":0.1}}\n"
            )
        };
        let rows = [
            validation(0, 0.01),
            step(1),
            step(2),
            validation(2, 0.5),
            step(3),
            validation(3, 0.75),
        ];
        fs::write(directory.join(TrainingRun::METRICS), rows.concat() + tail)?;
        let sample = |step: Option<usize>, reply: &str| {
            let (prompt, reply) = ("who?".to_owned(), reply.to_owned());
            serde_json::to_string(&SampleReply { step, prompt, reply }).map(|row| row + "\n")
        };
        let samples = [sample(None, "nobody")?, sample(Some(2), "<me>")?];
        fs::write(directory.join(TrainingRun::SAMPLES), samples.concat())?;
        Ok(())
    }

    #[test]
    fn a_run_is_read_while_it_goes_on_and_a_row_of_something_else_is_named() -> TestResult {
        let dir = tempfile::tempdir()?;
        let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
        written(&whole, 0.01, "{\"step\":4,\"lo")?;
        let run = TrainingRun::read(&whole)?;
        assert_eq!((run.steps.len(), run.validations.len(), run.samples.len()), (3, 3, 2));
        // the row of step 0 is never the best: no adapter is kept before the first step
        assert_eq!(run.best().map(|best| best.step), Some(2));
        assert_eq!(run.tokens_per_second(), 200.0);
        written(&broken, 0.01, "{\"step\":4}\n")?;
        let refused = TrainingRun::read(&broken).map_err(|error| error.to_string());
        assert!(
            refused.as_ref().is_err_and(|text| text.contains("metrics.jsonl, line 7")),
            "{refused:?}"
        );
        assert!(TrainingRun::read(dir.path()).is_err());
        Ok(())
    }

    #[test]
    fn a_page_shows_curves_replies_and_options_and_no_path() -> TestResult {
        let dir = tempfile::tempdir()?;
        for (name, lr) in [("one", 0.01), ("two", 0.02)] {
            written(&dir.path().join(name), lr, "")?;
        }
        let run = |name: &str| TrainingRun::read(&dir.path().join(name));
        let alone = runs_page(&[run("one")?], "reft report one");
        for expected in [
            "<h1>Training run one</h1>",
            "Training loss",
            "Validation loss",
            "Learning rate",
            "base model",
            "after step 2",
            "&lt;me&gt;",
            "0.5000 after step 2",
            "<td>seed</td>",
        ] {
            assert!(alone.contains(expected), "{expected} is not in {alone}");
        }
        assert!(!alone.contains("/data/she") && !alone.contains("Memory</b>"), "{alone}");
        let both = runs_page(&[run("one")?, run("two")?], "reft report one two");
        assert!(both.contains("Options that differ") && both.contains("<td>lr</td>"));
        assert!(!both.contains("<td>seed</td>"));
        assert_eq!(
            both.matches("class=\"c1 curve\"").count(),
            5,
            "loss, its validation, norm, rate, speed"
        );
        Ok(())
    }
}
