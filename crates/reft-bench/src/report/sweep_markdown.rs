use std::fmt::Write;

use crate::report::markdown::summary;
use crate::report::numbers::{grouped, score, score_spread, seconds};
use crate::report::results::MethodReport;
use crate::report::sweep::{PointReport, SweepReport};

/// The report of a sweep as Markdown.
pub(super) fn sweep_markdown(report: &SweepReport) -> String {
    let mut text = String::new();
    write_markdown(&mut text, report).expect("invariant: writing to a string cannot fail");
    text
}

fn write_markdown(out: &mut String, report: &SweepReport) -> std::fmt::Result {
    let axes = &report.plan.sweep;
    writeln!(out, "# {}\n", report.plan.config.name)?;
    for line in sweep_summary(report) {
        writeln!(out, "- {line}")?;
    }
    let columns = axes.x.labels();
    for grid in report.grids() {
        writeln!(out, "\n## {}: {}\n", grid.label, report.metric.name())?;
        writeln!(out, "| {} \\ {} | {} |", axes.y.name(), axes.x.name(), columns.join(" | "))?;
        writeln!(out, "|---{}|", "|---".repeat(columns.len()))?;
        for (y, row) in axes.y.labels().iter().enumerate() {
            let value = |x| {
                let (mean, _) = grid.score(report.at(x, y)?)?;
                Some(score(report.metric, mean))
            };
            let cells = (0..columns.len()).map(|x| value(x).unwrap_or_else(|| "–".to_owned()));
            writeln!(out, "| {row} | {} |", cells.collect::<Vec<_>>().join(" | "))?;
        }
    }
    writeln!(out, "\n## Runs\n\n| {} |", HEADS.map(|head| head(report)).join(" | "))?;
    writeln!(out, "{}|", "|---".repeat(HEADS.len()))?;
    for point in &report.points {
        for method in &point.report.methods {
            let cells = run_row(report, point, method);
            let texts: Vec<String> = cells.into_iter().map(|(text, _)| text).collect();
            writeln!(out, "| {} |", texts.join(" | "))?;
        }
    }
    writeln!(
        out,
        "\nHeat maps are in report.html; every number is in report.json. Each point is a comparison of its own, with its own report, below points/."
    )
}

/// What was varied, and the facts that all points share.
pub(super) fn sweep_summary(report: &SweepReport) -> Vec<String> {
    let Some(first) = report.points.first() else { return Vec::new() };
    let shared =
        crate::report::results::Report { complete: report.complete, ..first.report.clone() };
    let axes = &report.plan.sweep;
    let varied = |axis: &crate::compare::SweepAxis| {
        format!("{} ({}) {}", axis.name(), axis.key, axis.labels().join(", "))
    };
    let mut lines = summary(&shared);
    let warnings = lines.iter().filter(|line| line.starts_with("**")).count();
    let what = format!(
        "Varied: {}, and {}; where other facts depend on them, those of the first point are told here",
        varied(&axes.y),
        varied(&axes.x)
    );
    lines.insert(warnings + 2, what); // after the model and the task
    lines
}

/// Heads of the table of runs.
pub(super) const HEADS: [fn(&SweepReport) -> String; 9] = [
    |_| "method".to_owned(),
    |report| report.plan.sweep.y.name().to_owned(),
    |report| report.plan.sweep.x.name().to_owned(),
    |report| report.metric.name().to_owned(),
    |_| "validation loss".to_owned(),
    |_| "steps".to_owned(),
    |_| "lr".to_owned(),
    |_| "training".to_owned(),
    |_| "parameters".to_owned(),
];

/// A run's texts with the numbers behind them.
pub(super) fn run_row(
    report: &SweepReport,
    point: &PointReport,
    method: &MethodReport,
) -> Vec<(String, Option<f64>)> {
    let axes = &report.plan.sweep;
    let none = || ("–".to_owned(), None);
    let chosen = method.grid.iter().find(|rate| Some(rate.lr) == method.lr);
    let loss = chosen.and_then(|rate| rate.validation_loss);
    let is_run = method.trainable_parameters > 0;
    let place = |labels: Vec<String>, i: usize| (labels[i].clone(), Some(i as f64));
    let whole = |n: i64| (grouped(n), Some(n as f64));
    let spread = method.score.as_ref();
    let time = method.train_seconds.as_ref().map(|time| time.mean);
    vec![
        (method.label.clone(), None),
        place(axes.y.labels(), point.y),
        place(axes.x.labels(), point.x),
        spread.map_or_else(none, |s| (score_spread(report.metric, s), Some(s.mean))),
        loss.map_or_else(none, |loss| (format!("{loss:.4}"), Some(loss))),
        if is_run { whole(method.losses.len() as i64) } else { none() },
        method.lr.map_or_else(none, |lr| (lr.to_string(), Some(lr))),
        time.map_or_else(none, |time| (seconds(time), Some(time))),
        if is_run { whole(method.trainable_parameters) } else { none() },
    ]
}
