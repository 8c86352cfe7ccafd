use std::fmt::Write;
use std::path::Path;

use reft_models::{write_json_in_order, write_text};
use reft_report::{
    COLOURS, Heat, HeatMap, Spread, escape, figure, grouped, heat_map, page, seconds,
};
use reft_train::Metric;
use serde::{Deserialize, Serialize};

use crate::report::html::{LEGEND, capital};
use crate::report::markdown::summary;
use crate::report::table::{Cell, Row, Table, nothing, score, score_spread, short_score};
use crate::{MethodReport, PointPlan, Report, Result, SweepAxis, SweepPlan};

/// The results of a sweep: its `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepReport {
    /// The sweep itself: command, configuration, axes.
    pub plan: SweepPlan,
    /// Whether every method is finished at every point.
    pub complete: bool,
    /// The metric of the scores.
    pub metric: Metric,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// The points, row by row.
    pub points: Vec<PointReport>,
}

/// A point of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointReport {
    /// Where it is.
    #[serde(flatten)]
    pub plan: PointPlan,
    /// The results of its comparison.
    pub report: Report,
}

impl SweepReport {
    /// Gathers the finished parts of a sweep.
    ///
    /// # Errors
    /// If there is no sweep, or a file cannot be read.
    pub fn collect(output: &Path) -> Result<Self> {
        let plan = SweepPlan::read(output)?;
        let point = |plan: &PointPlan| {
            let report = Report::collect(&output.join(&plan.directory))?;
            Ok(PointReport { plan: plan.clone(), report })
        };
        let points = plan.points.iter().map(point).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            complete: points.iter().all(|point| point.report.complete),
            metric: plan.metric,
            higher_is_better: plan.metric.higher_is_better(),
            points,
            plan,
        })
    }

    /// Writes `report.json`, `report.md` and `report.html`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, output: &Path) -> Result<()> {
        write_json_in_order(&output.join("report.json"), self)?;
        write_text(&output.join("report.md"), &self.markdown())?;
        Ok(write_text(&output.join("report.html"), &sweep_page(self))?)
    }

    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        write_markdown(&mut text, self).expect("invariant: writing to a string cannot fail");
        text
    }

    /// Everything that has a score at each point: the methods, then the base model.
    fn grids(&self) -> Vec<Grid<'_>> {
        let labels = self.plan.config.method.iter().map(|method| method.label());
        let mut grids: Vec<Grid> =
            labels.enumerate().map(|(i, label)| Grid { label, method: Some(i) }).collect();
        grids.push(Grid { label: "base model", method: None });
        grids
    }

    /// The point in a column and a row.
    fn at(&self, x: usize, y: usize) -> Option<&PointReport> {
        self.points.iter().find(|point| (point.plan.x, point.plan.y) == (x, y))
    }
}

/// A method over the whole sweep, or the base model.
struct Grid<'a> {
    label: &'a str,
    /// Index of the method; `None`: the base model.
    method: Option<usize>,
}

impl Grid<'_> {
    /// The mean score at a point, and its standard deviation over seeds.
    fn score(&self, point: &PointReport) -> Option<(f64, Option<f64>)> {
        match self.method {
            Some(i) => {
                point.report.methods.get(i)?.score.as_ref().map(|score| (score.mean, score.sd))
            }
            None => point.report.base.as_ref().map(|base| (base.score, None)),
        }
    }
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

/// The axes, and the facts that all points share.
fn sweep_summary(report: &SweepReport) -> Vec<String> {
    let Some(first) = report.points.first() else { return Vec::new() };
    let shared = Report { complete: report.complete, ..first.report.clone() };
    let axes = &report.plan.sweep;
    let varied =
        |axis: &SweepAxis| format!("{} ({}) {}", axis.name(), axis.key, axis.labels().join(", "));
    let mut lines = summary(&shared);
    let warnings = lines.iter().filter(|line| line.starts_with("**")).count();
    let what = format!(
        "Varied: {}, and {}; other facts that depend on them are the first point's",
        varied(&axes.y),
        varied(&axes.x)
    );
    lines.insert(warnings + 2, what); // after the model and the task
    lines
}

/// Every method at every point.
fn runs(report: &SweepReport) -> Table {
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

/// The report of a sweep as one self-contained page.
fn sweep_page(report: &SweepReport) -> String {
    page(&report.plan.config.name, sweep_summary(report), LEGEND, |out| {
        heat_maps(out, report)?;
        writeln!(out, "<h2>Runs</h2>")?;
        runs(report).html(out)?;
        writeln!(
            out,
            "<p class=\"soft\">Each point is a comparison of its own, with its own report, below points/.</p>"
        )
    })
}

fn heat_maps(out: &mut String, report: &SweepReport) -> std::fmt::Result {
    let axes = &report.plan.sweep;
    let (columns, rows) = (axes.x.labels(), axes.y.labels());
    let metric = report.metric;
    let range = range(report);
    let title = format!("{} by {} and {}", metric.name(), axes.y.name(), axes.x.name());
    writeln!(out, "<h2>{}</h2>\n<div class=\"plots\">", escape(&capital(&title)))?;
    for grid in report.grids() {
        let cell = |x: usize, y: usize| heat(report, &grid, report.at(x, y)?);
        let row = |y: usize| (0..columns.len()).map(|x| cell(x, y)).collect();
        let map = HeatMap {
            x: (axes.x.name(), &columns),
            y: (axes.y.name(), &rows),
            cells: (0..rows.len()).map(row).collect(),
            range,
            ends: (score(metric, range.0), score(metric, range.1)),
            unit: metric.name(),
        };
        let note =
            if metric.is_share() { "In percent, mean over seeds." } else { "Mean over seeds." };
        figure(out, grid.label, note, &heat_map(&format!("{}: {title}", grid.label), &map), &[])?;
    }
    writeln!(out, "</div>")
}

fn heat(report: &SweepReport, grid: &Grid, point: &PointReport) -> Option<Heat> {
    let (value, sd) = grid.score(point)?;
    let spread = Spread { mean: value, sd, values: Vec::new() };
    Some(Heat {
        value,
        text: short_score(report.metric, value),
        title: format!(
            "{}, {}: {}",
            grid.label,
            point.plan.name,
            score_spread(report.metric, &spread)
        ),
    })
}

/// The scores that get the palest and the strongest colour, the same in all heat maps.
fn range(report: &SweepReport) -> (f64, f64) {
    if report.metric.is_share() {
        return (0.0, 1.0);
    }
    let grids = report.grids();
    let scores = grids.iter().flat_map(|grid| report.points.iter().map(|point| grid.score(point)));
    let (low, high) = scores
        .flatten()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (x, _)| (low.min(x), high.max(x)));
    if low > high { (0.0, 1.0) } else { (low, high) }
}
