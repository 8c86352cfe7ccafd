use std::fmt::Write;

use reft_report::{Heat, HeatMap, Spread, escape, figure, heat_map};

use crate::report::html::{capital, document};
use crate::report::scores::{score, score_spread, short_score};
use crate::report::sweep::{Grid, PointReport, SweepReport};
use crate::report::sweep_markdown::{runs, sweep_summary};
use crate::tasks::Metric;

/// The report of a sweep as one page that needs nothing else.
pub(super) fn sweep_page(report: &SweepReport) -> String {
    document(&report.plan.config.name, sweep_summary(report), |out| {
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
        let note = match metric {
            Metric::Loss => "Mean over seeds.",
            Metric::Accuracy | Metric::Recall => "In percent, mean over seeds.",
        };
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

/// What the palest and the strongest colour stand for, the same in all maps.
fn range(report: &SweepReport) -> (f64, f64) {
    if report.metric != Metric::Loss {
        return (0.0, 1.0);
    }
    let grids = report.grids();
    let scores = grids.iter().flat_map(|grid| report.points.iter().map(|point| grid.score(point)));
    let (low, high) = scores
        .flatten()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (x, _)| (low.min(x), high.max(x)));
    if low > high { (0.0, 1.0) } else { (low, high) }
}
