use std::fmt::Write;

use crate::report::heat_map::{Heat, HeatMap, heat_map};
use crate::report::html::{COLOURS, capital, document, escape, figure, table_row};
use crate::report::numbers::{score, score_spread};
use crate::report::spread::Spread;
use crate::report::sweep::{Grid, PointReport, SweepReport};
use crate::report::sweep_markdown::{HEADS, run_row, sweep_summary};
use crate::tasks::Metric;

/// The report of a sweep as one page that needs nothing else.
pub(super) fn sweep_page(report: &SweepReport) -> String {
    document(&report.plan.config.name, sweep_summary(report), |out| {
        heat_maps(out, report)?;
        runs(out, report)
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
        text: short(report.metric, value),
        title: format!("{}, {}: {}", grid.label, point.name, score_spread(report.metric, &spread)),
    })
}

/// A value in at most four characters; a share that is not the whole never reads 100.
fn short(metric: Metric, value: f64) -> String {
    match metric {
        Metric::Loss => format!("{value:.2}"),
        Metric::Accuracy | Metric::Recall => short_share(value),
    }
}

/// A share in percent in at most four characters, rounded as everywhere but never up to the whole.
pub(crate) fn short_share(value: f64) -> String {
    let percent = if value < 1.0 { (100.0 * value).min(99.9) } else { 100.0 * value };
    let text = format!("{percent:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
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

fn runs(out: &mut String, report: &SweepReport) -> std::fmt::Result {
    writeln!(out, "<h2>Runs</h2>\n<div class=\"scroll\"><table class=\"sortable\">\n<thead><tr>")?;
    for head in HEADS {
        let head = escape(&head(report));
        write!(out, "<th scope=\"col\"><button type=\"button\">{head}</button></th>")?;
    }
    writeln!(out, "</tr></thead>\n<tbody>")?;
    for point in &report.points {
        for (i, method) in point.report.methods.iter().enumerate() {
            table_row(out, &run_row(report, point, method), Some(i % COLOURS), false)?;
        }
    }
    writeln!(
        out,
        "</tbody></table></div>\n<p class=\"soft\">Press a head to sort. Each point is a comparison of its own, with its own report, below points/.</p>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_whole_does_not_read_100() {
        assert_eq!(short(Metric::Recall, 1.0), "100");
        assert_eq!(short(Metric::Recall, 0.9999), "99.9");
        assert_eq!(short(Metric::Accuracy, 0.3125), "31.2");
        assert_eq!(short(Metric::Accuracy, 0.96875), "96.9");
        assert_eq!(short(Metric::Recall, 0.29), "29");
        assert_eq!(short(Metric::Recall, 0.0), "0");
        assert_eq!(short(Metric::Loss, 2.3456), "2.35");
    }
}
