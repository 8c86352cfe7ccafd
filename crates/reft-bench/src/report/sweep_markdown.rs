use std::fmt::Write;

use reft_report::{COLOURS, grouped, seconds};

use crate::compare::SweepAxis;
use crate::report::markdown::summary;
use crate::report::results::{MethodReport, Report};
use crate::report::scores::{score, score_spread};
use crate::report::sweep::{PointReport, SweepReport};
use crate::report::table::{Cell, Row, Table, nothing};

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
    writeln!(out, "\n## Runs\n")?;
    runs(report).markdown(out)?;
    writeln!(
        out,
        "\nHeat maps are in report.html; every number is in report.json. Each point is a comparison of its own, with its own report, below points/."
    )
}

/// What was varied, and the facts that all points share.
pub(super) fn sweep_summary(report: &SweepReport) -> Vec<String> {
    let Some(first) = report.points.first() else { return Vec::new() };
    let shared = Report { complete: report.complete, ..first.report.clone() };
    let axes = &report.plan.sweep;
    let varied =
        |axis: &SweepAxis| format!("{} ({}) {}", axis.name(), axis.key, axis.labels().join(", "));
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

/// Every method at every point.
pub(super) fn runs(report: &SweepReport) -> Table {
    let (axes, metric) = (&report.plan.sweep, report.metric.name());
    let heads = [
        "method",
        axes.y.name(),
        axes.x.name(),
        metric,
        "validation loss",
        "steps",
        "lr",
        "training",
        "parameters",
    ];
    let of_point = |point: &PointReport| {
        let methods = point.report.methods.iter().enumerate();
        let row = |(i, method)| Row {
            cells: cells(report, point, method),
            colour: Some(i % COLOURS),
            is_best: false,
        };
        methods.map(row).collect::<Vec<_>>()
    };
    let rows = report.points.iter().flat_map(of_point).collect();
    Table { heads: heads.map(str::to_owned).into(), rows }
}

fn cells(report: &SweepReport, point: &PointReport, method: &MethodReport) -> Vec<Cell> {
    let axes = &report.plan.sweep;
    let chosen = method.grid.iter().find(|rate| Some(rate.lr) == method.lr);
    let loss = chosen.and_then(|rate| rate.validation_loss);
    let is_run = method.trainable_parameters > 0;
    let place = |labels: Vec<String>, i: usize| (labels[i].clone(), Some(i as f64));
    let whole = |n: i64| if is_run { (grouped(n), Some(n as f64)) } else { nothing() };
    let spread = method.score.as_ref();
    let time = method.train_seconds.as_ref().map(|time| time.mean);
    vec![
        (method.label.clone(), None),
        place(axes.y.labels(), point.plan.y),
        place(axes.x.labels(), point.plan.x),
        spread.map_or_else(nothing, |s| (score_spread(report.metric, s), Some(s.mean))),
        loss.map_or_else(nothing, |loss| (format!("{loss:.4}"), Some(loss))),
        whole(method.losses.len() as i64),
        method.lr.map_or_else(nothing, |lr| (lr.to_string(), Some(lr))),
        time.map_or_else(nothing, |time| (seconds(time), Some(time))),
        whole(method.trainable_parameters),
    ]
}
