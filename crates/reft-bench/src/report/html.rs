use std::fmt::Write;

use reft_report::{
    Bar, COLOURS, Curve, Names, Point, Scale, bars, counted, curves, escape, figure, grouped, page,
    running_mean, running_mean_steps, scatter, short,
};

use crate::report::markdown::summary;
use crate::report::table::score_spread;
use crate::{MethodReport, Report};

/// The report as one self-contained page.
pub(crate) fn html(report: &Report) -> String {
    page(&report.plan.config.name, summary(report), LEGEND, |out| {
        writeln!(out, "<h2>Results</h2>")?;
        report.results().html(out)?;
        plots(out, report)?;
        if let Some(tests) = report.tests() {
            writeln!(out, "<h2>Test sets</h2>")?;
            tests.html(out)?;
        }
        rates(out, report)
    })
}

/// Explanations of the terms on the pages.
pub(super) const LEGEND: &str = "± is the standard deviation over seeds. Forgetting is the loss on a neutral text minus the base model's. \
    generated/s is new tokens per second, eight prompts at once. Peak memory is that of a run's own process, the loading of the model included. Parameters are those trained, in percent of the base model's.";

/// The plot of scores against trainable parameters, as in the ReFT paper's figure 1; `None` if no method is finished.
pub(super) fn score_plot(report: &Report) -> Option<String> {
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
            x: method.trainable_parameters.max(1) as f64, // the axis is logarithmic, and a head alone trains none
            y: score.mean,
            sd: score.sd,
            title,
        })
    };
    let points: Vec<Point> = report.methods.iter().enumerate().filter_map(point).collect();
    let names = Names { x: "trainable parameters", y: metric.name() };
    let base = report.base.as_ref().map(|base| ("base model", base.score));
    (!points.is_empty()).then(|| scatter(&points, base, &names, metric.is_share(), short))
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

    let curve = |(i, method): (usize, &MethodReport)| {
        Curve::of_steps(method.label.clone(), i % COLOURS, running_mean(&method.losses))
    };
    let drawn: Vec<Curve> = of_methods().map(curve).filter(|c| !c.points.is_empty()).collect();
    let names = Names { x: "step", y: "training loss" };
    let steps = drawn.iter().map(|curve| curve.points.len()).max().unwrap_or(0);
    let note = format!(
        "Mean over seeds, at the chosen rate; running mean over {}; the left axis is logarithmic.",
        counted(running_mean_steps(steps), "step")
    );
    figure(out, "Training loss", &note, &curves(&drawn, &names, Scale::Log), &drawn)?;

    let results = report.results();
    let measures = [
        ("Training time", "training", "All steps of one run."),
        ("Peak memory", "peak memory", "Of the training run's process."),
        ("Training speed", "tokens/s", "Tokens per second, padding not counted."),
        ("Generation speed", "generated/s", "New tokens per second, eight prompts at once."),
    ];
    for (title, head, note) in measures {
        let drawn: Vec<Bar> = results.column(head).collect();
        if !drawn.is_empty() {
            figure(out, title, note, &bars(title, &drawn), &[])?;
        }
    }
    writeln!(out, "</div>")
}

pub(super) fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
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
            let class = if method.lr == Some(rate.lr) { " class=\"best\"" } else { "" };
            write!(out, "<td{class}>{}</td>", report.rate(rate))?;
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</tbody></table></div>")
}
