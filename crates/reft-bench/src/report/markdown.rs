use std::fmt::Write;

use reft_report::{bytes, counted, grouped};

use crate::{Report, TaskKind};

/// Writes the report as Markdown.
pub(super) fn write_markdown(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "# {}\n", report.plan.config.name)?;
    for line in summary(report) {
        writeln!(out, "- {line}")?;
    }
    writeln!(out)?;
    report.results().markdown(out)?;
    if let Some(tests) = report.tests() {
        writeln!(out, "\n## Test sets\n")?;
        tests.markdown(out)?;
    }
    writeln!(
        out,
        "\n## Learning rates\n\nScore on the validation set, seed {}; the rate in bold was chosen.\n",
        report.plan.config.seeds[0]
    )?;
    for method in &report.methods {
        let rates = method.grid.iter().map(|rate| {
            let bold = if method.lr == Some(rate.lr) { "**" } else { "" };
            format!("{bold}{}{bold}", report.rate(rate))
        });
        writeln!(out, "- {}: {}", method.label, rates.collect::<Vec<_>>().join(", "))?;
    }
    writeln!(out, "\nPlots are in report.html; every number, of each seed too, is in report.json.")
}

/// Methods, data and machine of the comparison: a line each.
pub(crate) fn summary(report: &Report) -> Vec<String> {
    let plan = &report.plan;
    let (data, machine, train) = (&plan.data, &plan.machine, &plan.config.train.options);
    let mut length = match (train.max_steps, train.epochs) {
        (Some(steps), _) => counted(steps, "step"),
        (None, epochs) => counted(epochs.unwrap_or(3), "epoch"),
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
        "Model {} in {}, {} parameters",
        plan.config.model,
        plan.config.kind.name(),
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
        true => "Tested on the training text: the score measures memory".to_owned(),
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
        "Machine: {}, {} of {}{memory}, {}, {}",
        machine.cpu.as_deref().unwrap_or("unknown processor"),
        counted(machine.threads, "thread"),
        counted(machine.cores, "core"),
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
