use std::fmt::Write;

use crate::report::markdown::{row, summary};
use crate::report::numbers::{bytes, grouped, score, score_spread, seconds, short};
use crate::report::page_script::SCRIPT;
use crate::report::page_style::STYLE;
use crate::report::plots::{Bar, Curve, Names, Point, bars, curves, scatter};
use crate::report::results::{MethodReport, Report};
use crate::tasks::Metric;

/// Colours that the page's style has.
pub(super) const COLOURS: usize = 10;

/// The report as one page that needs nothing else.
pub(crate) fn html(report: &Report) -> String {
    document(&report.plan.config.name, summary(report), |out| {
        table(out, report)?;
        plots(out, report)?;
        tests(out, report)?;
        rates(out, report)
    })
}

/// A page that needs nothing else: the facts of a comparison stand around what `body` writes.
pub(super) fn document(
    title: &str,
    summary: Vec<String>,
    body: impl FnOnce(&mut String) -> std::fmt::Result,
) -> String {
    page(title, summary, LEGEND, body)
}

/// A page that needs nothing else: facts stand around what `body` writes, and `legend` explains its words at the end.
pub(crate) fn page(
    title: &str,
    facts: Vec<String>,
    legend: &str,
    body: impl FnOnce(&mut String) -> std::fmt::Result,
) -> String {
    let mut page = String::new();
    write_page(&mut page, &escape(title), facts, legend, body)
        .expect("invariant: writing to a string cannot fail");
    page
}

const LEGEND: &str = "± is the standard deviation over seeds. Forgetting is the loss on a neutral text minus the base model's. \
    generated/s is new tokens per second, eight prompts at once. Peak memory is that of a run's own process, the loading of the model included. Parameters are those trained, in percent of the base model's.";

/// Text as HTML.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn write_page(
    out: &mut String,
    title: &str,
    summary: Vec<String>,
    legend: &str,
    body: impl FnOnce(&mut String) -> std::fmt::Result,
) -> std::fmt::Result {
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>"
    )?;
    writeln!(out, "<h1>{title}</h1>")?;
    let (warnings, facts): (Vec<String>, Vec<String>) =
        summary.into_iter().partition(|line| line.starts_with("**"));
    for warning in warnings {
        let text = escape(&warning).replacen("**", "<b>", 1).replacen("**", "</b>", 1);
        writeln!(out, "<p class=\"warn\">{text}</p>")?;
    }
    if let Some(fact) = facts.get(1) {
        writeln!(out, "<p class=\"soft\">{}. {}.</p>", inline(&facts[0]), inline(fact))?;
    }
    body(out)?;
    writeln!(out, "<h2>How it was done</h2>\n<ul>")?;
    for fact in facts {
        writeln!(out, "<li>{}</li>", inline(&fact))?;
    }
    writeln!(out, "</ul>")?;
    writeln!(out, "<p class=\"soft\">{}</p>", escape(legend))?;
    writeln!(out, "</main>\n<script>{SCRIPT}</script>\n</body>\n</html>")
}

/// A line of Markdown with code as HTML.
fn inline(line: &str) -> String {
    let pieces = line.split('`').enumerate();
    let piece = |(i, text): (usize, &str)| match i % 2 {
        1 => format!("<code>{}</code>", escape(text)),
        _ => escape(text),
    };
    pieces.map(piece).collect()
}

fn table(out: &mut String, report: &Report) -> std::fmt::Result {
    let heads = [
        "method",
        report.metric.name(),
        "parameters",
        "%",
        "file",
        "lr",
        "training",
        "tokens/s",
        "peak memory",
        "generated/s",
        "forgetting",
    ];
    writeln!(
        out,
        "<h2>Results</h2>\n<div class=\"scroll\"><table class=\"sortable\">\n<thead><tr>"
    )?;
    for head in heads {
        write!(out, "<th scope=\"col\"><button type=\"button\">{head}</button></th>")?;
    }
    writeln!(out, "</tr></thead>\n<tbody>")?;
    if let Some(base) = &report.base {
        let speed = base.generation_tokens_per_second;
        let mut cells = vec![
            ("base model".to_owned(), None),
            (score(report.metric, base.score), Some(base.score)),
        ];
        cells.push(("0".to_owned(), Some(0.0)));
        cells.push(("0 %".to_owned(), Some(0.0)));
        cells.extend(std::iter::repeat_n(("–".to_owned(), None), 5));
        cells.push((speed.map_or("–".into(), |x| grouped(x.round() as i64)), speed));
        cells.push(("–".to_owned(), None));
        table_row(out, &cells, None, false)?;
    }
    let best = best_mean(report);
    for (i, method) in report.methods.iter().enumerate() {
        let is_best = best.is_some() && best == method.score.as_ref().map(|score| score.mean);
        let cells: Vec<_> = row(report, method).into_iter().zip(values(method)).collect();
        table_row(out, &cells, Some(i % COLOURS), is_best)?;
    }
    writeln!(out, "</tbody></table></div>\n<p class=\"soft\">Press a head to sort.</p>")
}

pub(super) fn table_row(
    out: &mut String,
    cells: &[(String, Option<f64>)],
    colour: Option<usize>,
    is_best: bool,
) -> std::fmt::Result {
    write!(out, "<tr>")?;
    for (i, (text, value)) in cells.iter().enumerate() {
        let text = escape(text);
        if i == 0 {
            let dot = colour.map_or("--soft".to_owned(), |colour| format!("--c{colour}"));
            write!(
                out,
                "<td><span class=\"dot\" style=\"background:var({dot})\"></span>{text}</td>"
            )?;
            continue;
        }
        let class = if i == 1 && is_best { " class=\"best\"" } else { "" };
        let value = value.map_or(String::new(), |value| value.to_string());
        write!(out, "<td{class} data-value=\"{value}\">{text}</td>")?;
    }
    writeln!(out, "</tr>")
}

fn best_mean(report: &Report) -> Option<f64> {
    let means = report.methods.iter().filter_map(|method| Some(method.score.as_ref()?.mean));
    let better = |a: f64, b: f64| if (a > b) == report.higher_is_better { a } else { b };
    means.reduce(better)
}

/// The numbers behind [`row`].
fn values(method: &MethodReport) -> Vec<Option<f64>> {
    let mean = |spread: &Option<crate::report::spread::Spread>| spread.as_ref().map(|s| s.mean);
    let positive = |x: f64| (x > 0.0).then_some(x);
    vec![
        None,
        mean(&method.score),
        positive(method.trainable_parameters as f64),
        positive(method.trainable_percent),
        positive(method.adapter_bytes as f64),
        method.lr,
        mean(&method.train_seconds),
        mean(&method.tokens_per_second),
        method.peak_memory_bytes.map(|n| n as f64),
        mean(&method.generation_tokens_per_second),
        mean(&method.forgetting),
    ]
}

/// The plot of scores against trainable parameters, as a file of its own; `None` if no method is finished.
pub(crate) fn svg(report: &Report) -> Option<String> {
    let plot = score_plot(report)?;
    let (start, rest) = plot.split_once('>').expect("invariant: a plot begins with its tag");
    Some(format!(
        "{start} xmlns=\"http://www.w3.org/2000/svg\"><style>{STYLE}svg{{background:var(--bg)}}</style>{rest}\n"
    ))
}

/// As in the ReFT paper's figure 1.
fn score_plot(report: &Report) -> Option<String> {
    let metric = report.metric;
    let point = |(i, method): (usize, &MethodReport)| {
        let score = method.score.as_ref()?;
        let title = format!(
            "{}: {}, {} parameters",
            method.label,
            score_spread(metric, score),
            grouped(method.trainable_parameters)
        );
        Some(Point {
            label: method.label.clone(),
            colour: i % COLOURS,
            x: method.trainable_parameters as f64,
            y: score.mean,
            sd: score.sd,
            title,
        })
    };
    let points: Vec<Point> = report.methods.iter().enumerate().filter_map(point).collect();
    let names = Names { x: "trainable parameters", y: metric.name() };
    let base = report.base.as_ref().map(|base| base.score);
    (!points.is_empty()).then(|| scatter(&points, base, &names, metric != Metric::Loss, short))
}

fn plots(out: &mut String, report: &Report) -> std::fmt::Result {
    let of_methods = || report.methods.iter().enumerate();
    let Some(plot) = score_plot(report) else {
        return writeln!(out, "<p>No method is finished yet.</p>");
    };
    writeln!(out, "<h2>Plots</h2>\n<div class=\"plots\">")?;
    let title = format!("{} against trainable parameters", capital(report.metric.name()));
    figure(
        out,
        &title,
        "Mean and standard deviation over seeds; the lower axis is logarithmic.",
        &plot,
        &[],
    )?;

    let curve = |(i, method): (usize, &MethodReport)| Curve {
        label: method.label.clone(),
        colour: i % COLOURS,
        values: smoothed(&method.losses),
    };
    let drawn: Vec<Curve> = of_methods().map(curve).filter(|c| !c.values.is_empty()).collect();
    let names = Names { x: "step", y: "training loss" };
    let steps = drawn.iter().map(|curve| curve.values.len()).max().unwrap_or(0);
    let note =
        format!("Mean over seeds, at the chosen rate; running mean over {} steps.", window(steps));
    figure(out, "Training loss", &note, &curves(&drawn, &names), &drawn)?;

    type Measure = fn(&MethodReport) -> Option<(f64, String)>;
    let measures: [(&str, &str, Measure); 4] = [
        ("Training time", "All steps of one run.", |m| {
            m.train_seconds.as_ref().map(|s| (s.mean, seconds(s.mean)))
        }),
        ("Peak memory", "Of the training run's process.", |m| {
            m.peak_memory_bytes.map(|n| (n as f64, bytes(n)))
        }),
        ("Training speed", "Tokens per second, padding not counted.", |m| {
            m.tokens_per_second.as_ref().map(|s| (s.mean, grouped(s.mean.round() as i64)))
        }),
        ("Generation speed", "New tokens per second, eight prompts at once.", |m| {
            m.generation_tokens_per_second
                .as_ref()
                .map(|s| (s.mean, grouped(s.mean.round() as i64)))
        }),
    ];
    for (title, note, measure) in measures {
        let bar = |(i, method): (usize, &MethodReport)| {
            let (value, text) = measure(method)?;
            Some(Bar { label: method.label.clone(), colour: i % COLOURS, value, text })
        };
        let drawn: Vec<Bar> = of_methods().filter_map(bar).collect();
        if !drawn.is_empty() {
            figure(out, title, note, &bars(title, &drawn), &[])?;
        }
    }
    writeln!(out, "</div>")
}

pub(crate) fn figure(
    out: &mut String,
    title: &str,
    note: &str,
    plot: &str,
    legend: &[Curve],
) -> std::fmt::Result {
    write!(
        out,
        "<figure><figcaption><b>{}</b><span class=\"soft\">{}</span></figcaption>{plot}",
        escape(title),
        escape(note)
    )?;
    if !legend.is_empty() {
        write!(out, "<div class=\"legend\">")?;
        for curve in legend {
            write!(
                out,
                "<span><span class=\"dot\" style=\"background:var(--c{})\"></span>{}</span>",
                curve.colour,
                escape(&curve.label)
            )?;
        }
        write!(out, "</div>")?;
    }
    writeln!(out, "</figure>")
}

pub(super) fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

fn window(steps: usize) -> usize {
    (steps / 25).max(1)
}

/// The running mean over the steps up to each.
fn smoothed(losses: &[f64]) -> Vec<f64> {
    let width = window(losses.len());
    let mean = |i: usize| {
        let part = &losses[(i + 1).saturating_sub(width)..=i];
        part.iter().sum::<f64>() / part.len() as f64
    };
    (0..losses.len()).map(mean).collect()
}

fn tests(out: &mut String, report: &Report) -> std::fmt::Result {
    let names = report.test_names();
    if names.len() < 2 {
        return Ok(());
    }
    writeln!(
        out,
        "<h2>Test sets</h2>\n<div class=\"scroll\"><table class=\"sortable\">\n<thead><tr><th scope=\"col\"><button type=\"button\">method</button></th>"
    )?;
    for name in names {
        write!(out, "<th scope=\"col\"><button type=\"button\">{}</button></th>", escape(&name))?;
    }
    writeln!(out, "</tr></thead>\n<tbody>")?;
    if let Some(base) = &report.base {
        let values = base.tests.iter().map(|x| (score(report.metric, *x), Some(*x)));
        let cells: Vec<_> =
            std::iter::once(("base model".to_owned(), None)).chain(values).collect();
        table_row(out, &cells, None, false)?;
    }
    for (i, method) in report.methods.iter().enumerate().filter(|(_, m)| !m.tests.is_empty()) {
        let values = method.tests.iter().map(|s| (score_spread(report.metric, s), Some(s.mean)));
        let cells: Vec<_> = std::iter::once((method.label.clone(), None)).chain(values).collect();
        table_row(out, &cells, Some(i % COLOURS), false)?;
    }
    writeln!(out, "</tbody></table></div>")
}

fn rates(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(
        out,
        "<h2>Learning rates</h2>\n<p class=\"soft\">Score on the validation set with seed {}; the chosen rate is bold.</p>\n\
         <div class=\"scroll\"><table><tbody>",
        report.plan.config.seeds[0]
    )?;
    for method in &report.methods {
        write!(out, "<tr><td>{}</td>", escape(&method.label))?;
        for rate in &method.grid {
            let found = match (&rate.diverged, rate.validation) {
                (Some(_), _) => "diverged".to_owned(),
                (None, Some(value)) => score(report.metric, value),
                (None, None) => "not run yet".to_owned(),
            };
            let class = if method.lr == Some(rate.lr) { " class=\"best\"" } else { "" };
            write!(out, "<td{class}>{}: {found}</td>", rate.lr)?;
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</tbody></table></div>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_mean_starts_with_what_there_is() {
        let losses: Vec<f64> = (0..50).map(f64::from).collect();
        assert_eq!(&smoothed(&losses)[..3], [0.0, 0.5, 1.5]);
        assert_eq!(smoothed(&[2.0, 4.0]), [2.0, 4.0]);
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(
            inline("a <b> `x < \"y\"` & c"),
            "a &lt;b&gt; <code>x &lt; &quot;y&quot;</code> &amp; c"
        );
    }
}
