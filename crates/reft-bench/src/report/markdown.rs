use std::fmt::Write;

use crate::report::numbers::{bytes, grouped, percent, score, score_spread, seconds, spread};
use crate::report::results::{MethodReport, Report};
use crate::report::spread::Spread;
use crate::tasks::TaskKind;

/// The report as Markdown.
pub(crate) fn markdown(report: &Report) -> String {
    let mut text = String::new();
    write_markdown(&mut text, report).expect("invariant: writing to a string cannot fail");
    text
}

fn write_markdown(out: &mut String, report: &Report) -> std::fmt::Result {
    let (plan, metric) = (&report.plan, report.metric);
    writeln!(out, "# {}\n", plan.config.name)?;
    for line in summary(report) {
        writeln!(out, "- {line}")?;
    }
    writeln!(
        out,
        "\n| method | {} | parameters | % | file | lr | training | tokens/s | peak memory | generated/s | forgetting |",
        metric.name()
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|---|---|---|")?;
    if let Some(base) = &report.base {
        let speed =
            base.generation_tokens_per_second.map_or("–".into(), |x| grouped(x.round() as i64));
        writeln!(
            out,
            "| base | {} | 0 | 0 | – | – | – | – | – | {speed} | – |",
            score(metric, base.score)
        )?;
    }
    for method in &report.methods {
        writeln!(out, "| {} |", row(report, method).join(" | "))?;
    }
    if report.plan.config.data.test.len() > 1 {
        writeln!(out, "\n## Test sets\n\n| method | {} |", report.test_names().join(" | "))?;
        writeln!(out, "|---{}|", "|---".repeat(report.test_names().len()))?;
        if let Some(base) = &report.base {
            let cells: Vec<String> = base.tests.iter().map(|x| score(metric, *x)).collect();
            writeln!(out, "| base | {} |", cells.join(" | "))?;
        }
        for method in &report.methods {
            let cells: Vec<String> =
                method.tests.iter().map(|spread| score_spread(metric, spread)).collect();
            writeln!(out, "| {} | {} |", method.label, cells.join(" | "))?;
        }
    }
    writeln!(
        out,
        "\n## Learning rates\n\nScore on the validation set, seed {}; the rate in bold was chosen.\n",
        plan.config.seeds[0]
    )?;
    for method in &report.methods {
        let rates = method.grid.iter().map(|rate| {
            let found = match (&rate.diverged, rate.validation) {
                (Some(_), _) => "diverged".to_owned(),
                (None, Some(value)) => score(metric, value),
                (None, None) => "not run yet".to_owned(),
            };
            let bold = if method.lr == Some(rate.lr) { "**" } else { "" };
            format!("{bold}{}: {found}{bold}", rate.lr)
        });
        writeln!(out, "- {}: {}", method.label, rates.collect::<Vec<_>>().join(", "))?;
    }
    writeln!(
        out,
        "\nPlots are in report.html; every number, with those of each seed, is in report.json."
    )
}

/// What was compared, on what, with what: a line each.
pub(crate) fn summary(report: &Report) -> Vec<String> {
    let plan = &report.plan;
    let (data, machine, train) = (&plan.data, &plan.machine, &plan.config.train);
    let kind = serde_json::to_value(plan.config.kind).ok();
    let kind = kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or_default();
    let mut length = match (train.max_steps, train.epochs) {
        (Some(steps), _) => format!("{steps} steps"),
        (None, epochs) => format!("{} epochs", epochs.unwrap_or(3)),
    };
    if let Some(loss) = train.stop_at_loss {
        length += &format!(" at most, fewer once the training loss is {loss}");
    }
    let tests: usize = data.test.iter().map(|part| part.used).sum();
    let mut lines = Vec::new();
    if !report.complete {
        lines.push("**Not finished:** some runs are missing; the same command goes on.".to_owned());
    }
    if plan.config.seeds.len() < 3 {
        lines.push(format!(
            "**{} seed{}:** too few to tell methods apart that lie close together.",
            plan.config.seeds.len(),
            if plan.config.seeds.len() == 1 { "" } else { "s" }
        ));
    }
    lines.push(format!(
        "Model {} in {kind}, {} parameters",
        plan.config.model,
        grouped(plan.base_parameters)
    ));
    lines.push(format!(
        "Task {}: {} on {} test rows; {} training and {} validation rows",
        plan.task.name,
        report.metric.name(),
        grouped(tests as i64),
        grouped(data.train.used as i64),
        grouped(data.validation.used as i64)
    ));
    lines.push(format!(
        "Budget, the same for all: {length}, batch {} × {}, at most {} tokens, {} learning rates each, seeds {}",
        train.batch_size,
        train.grad_accum,
        train.max_length,
        plan.config.method.first().map_or(0, |method| method.lr.len()),
        plan.config.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
    ));
    let leakage = &data.leakage;
    let is_one_text = plan.task.kind == TaskKind::Memorise
        && leakage.train_in_test == data.train.used
        && data.test.len() == 1;
    lines.push(match is_one_text {
        true => "Tested on the text that is trained on: what is measured is memory".to_owned(),
        false => format!(
        "Leakage: {} of {} training rows stand in the test set, {} in the validation set; {} validation rows stand in the test set",
        leakage.train_in_test,
        grouped(data.train.used as i64),
        leakage.train_in_validation,
        leakage.validation_in_test
    )});
    if data.cut > 0 {
        lines.push(format!("{} training rows were longer than allowed and were cut", data.cut));
    }
    let memory = machine.memory_bytes.map_or(String::new(), |n| format!(", {} memory", bytes(n)));
    lines.push(format!(
        "Machine: {}, {} threads of {} cores{memory}, {}, {}",
        machine.cpu.as_deref().unwrap_or("unknown processor"),
        machine.threads,
        machine.cores,
        machine.device,
        machine.system
    ));
    lines.push(format!(
        "Versions: reft {}, tch {}, libtorch {}",
        machine.reft, machine.tch, machine.libtorch
    ));
    lines.push(format!("Command: `{}`", plan.command));
    lines
}

/// The texts of a method's row, its name first.
pub(crate) fn row(report: &Report, method: &MethodReport) -> Vec<String> {
    let none = || "–".to_owned();
    let speed = |speed: &Spread| grouped(speed.mean.round() as i64);
    let is_run = method.trainable_parameters > 0;
    let note = if method.diverged > 0 {
        format!(" ({} diverged)", method.diverged)
    } else {
        String::new()
    };
    let score = match &method.score {
        Some(score) => score_spread(report.metric, score) + &note,
        None if method.grid.iter().all(|rate| rate.diverged.is_some()) => "diverged".to_owned(),
        None => none(),
    };
    vec![
        method.label.clone(),
        score,
        if is_run { grouped(method.trainable_parameters) } else { none() },
        if is_run { percent(method.trainable_percent) } else { none() },
        if method.adapter_bytes > 0 { bytes(method.adapter_bytes) } else { none() },
        method.lr.map_or_else(none, |lr| lr.to_string()),
        method.train_seconds.as_ref().map_or_else(none, |s| seconds(s.mean)),
        method.tokens_per_second.as_ref().map_or_else(none, speed),
        method.peak_memory_bytes.map_or_else(none, bytes),
        method.generation_tokens_per_second.as_ref().map_or_else(none, speed),
        method.forgetting.as_ref().map_or_else(none, |s| spread(s, 3)),
    ]
}
