//! `reft plan`: what a run will take in memory and time, and what makes it fit.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bytesize::ByteSize;
use clap::Args;
use reft_bench::{
    EFFICIENCY, Machine, StepPlan, TimingCase, grouped, plan_step, product_rate, resident_memory,
    ways,
};
use serde::Serialize;

use crate::machine::set_threads;
use crate::method_name::MethodName;
use crate::output;
use crate::step_args::StepArgs;
use crate::train_method::in_flags;

/// Say what training will take in memory and time, before a weight is read
///
/// Memory is computed from the model's shape, the method and the batch; it is the peak of a step. Time is the number of operations over the rate
/// of matrix products on this device, which is measured for a moment, or over --tflops for another machine. Where it does not fit, the flags
/// that make it fit are named.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  reft plan --model models/SmolLM2-135M-Instruct --method loreft --positions l1 --batch-size 8
  reft plan --model-config recipes/sizes/llama-3-8b.json --method loreft --rank 4 --positions l1 --kind bf16 --memory 24GB --tflops 80")]
pub struct PlanArgs {
    #[command(flatten)]
    step: StepArgs,

    /// Method, or several at once as loreft+lora
    #[arg(long, value_name = "METHOD", default_value = "loreft", help_heading = "Method")]
    method: MethodName,

    /// Memory that there is, as 24GB [default: all of this machine's]
    #[arg(long, value_name = "SIZE", help_heading = "Run")]
    memory: Option<ByteSize>,
    /// Examples of the training set
    #[arg(long, value_name = "N", default_value_t = 1000, help_heading = "Run")]
    examples: usize,
    /// Times that each is trained on
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Run")]
    epochs: usize,
    /// Rate of matrix products of another machine, in 10¹² operations a second [default: measured on this one]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = "Run")]
    tflops: Option<f64>,
    /// Print the plan as JSON
    #[arg(long, help_heading = "Run")]
    json: bool,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Plan {
    method: String,
    kind: String,
    memory_bytes: u64,
    peak_bytes: u64,
    fits: bool,
    step: StepPlan,
    /// Rows whose kept work fits beside the rest, if rows are kept.
    rows_kept: Option<u64>,
    rate: f64,
    is_rate_measured: bool,
    first_epoch_seconds_per_step: f64,
    later_epochs_seconds_per_step: f64,
    steps: usize,
    seconds: f64,
    ways: Vec<WayRow>,
}

#[derive(Debug, Serialize)]
struct WayRow {
    flags: String,
    peak_bytes: u64,
    fits: bool,
}

/// Runs the command.
pub fn run(args: &PlanArgs) -> Result<ExitCode> {
    if args.tflops.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
        bail!("--tflops is {}, expected a number above 0", args.tflops.unwrap_or(f64::NAN));
    }
    for (flag, value) in [("--examples", args.examples), ("--epochs", args.epochs)] {
        if value == 0 {
            bail!("{flag} is 0, expected at least 1");
        }
    }
    let (floor, shape) = args.step.case()?;
    let case = TimingCase { method: args.method.to_string(), ..floor };
    case.check(&shape).map_err(in_flags)?;
    let device = args.step.device.resolve()?;
    set_threads(args.step.threads)?;
    let memory = args.memory.map(|size| size.as_u64()).or(Machine::here(device).memory_bytes);
    let memory = memory.context("the system does not tell its memory; give --memory")?;
    let tokens = (case.batch_size * (case.prompt_length + case.response_length)) as i64;
    let rate = match args.tflops {
        Some(rate) => rate * 1e12,
        None => {
            let (d, f) = (shape.hidden_size, shape.intermediate_size);
            product_rate(tokens.min(1024), d, f, case.kind.kind(), device)
        }
    };
    // after the products: what libtorch takes for its threads is part of the program
    let program = resident_memory().context("the system does not tell this process's memory")?;
    let plan = plan(args, &case, program, memory, rate)?;
    if args.json {
        output::json(&plan)?;
    } else {
        output::piece(&text(args, &case, &plan)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn plan(args: &PlanArgs, case: &TimingCase, program: u64, memory: u64, rate: f64) -> Result<Plan> {
    let step = plan_step(case, program).map_err(in_flags)?;
    let peak = step.memory.total();
    let row = |way: &reft_bench::Way| -> Result<WayRow> {
        let peak_bytes = plan_step(&way.case, program).map_err(in_flags)?.memory.total();
        Ok(WayRow { flags: way.flags.clone(), peak_bytes, fits: peak_bytes <= memory })
    };
    let rows = ways(case).iter().skip(1).map(row).collect::<Result<Vec<_>>>()?;
    let seconds_of = |work: f64| work / (rate * EFFICIENCY);
    let steps_per_epoch = args.examples.div_ceil(case.batch_size);
    let (first, later) = (seconds_of(step.work.first_epoch), seconds_of(step.work.later_epochs));
    let seconds = steps_per_epoch as f64 * (first + (args.epochs - 1) as f64 * later);
    Ok(Plan {
        method: case.method.clone(),
        kind: args.step.kind.to_string(),
        memory_bytes: memory,
        peak_bytes: peak,
        fits: peak <= memory,
        rows_kept: (step.kept_row > 0).then(|| memory.saturating_sub(peak) / step.kept_row),
        step,
        rate,
        is_rate_measured: args.tflops.is_none(),
        first_epoch_seconds_per_step: first,
        later_epochs_seconds_per_step: later,
        steps: steps_per_epoch * args.epochs,
        seconds,
        ways: rows,
    })
}

fn text(args: &PlanArgs, case: &TimingCase, plan: &Plan) -> Result<String> {
    let size = |bytes: u64| ByteSize::b(bytes).display().si().to_string();
    let mut text = String::new();
    let (memory, step) = (&plan.step.memory, &plan.step);
    writeln!(
        text,
        "{} in {}, batches of {} rows of {} + {} tokens: {} trained numbers\n",
        plan.method,
        plan.kind,
        case.batch_size,
        case.prompt_length,
        case.response_length,
        grouped(step.trainable_parameters)
    )?;
    writeln!(text, "memory at the peak of a step")?;
    for (name, bytes) in [
        ("program and libtorch", memory.program),
        ("weights", memory.weights),
        ("trained tensors and AdamW", memory.optimizer),
        ("activations", memory.activations),
        ("logits or gradients of a block", memory.transient),
        ("kept work of the batch", memory.frozen_batch),
        ("all", plan.peak_bytes),
    ] {
        writeln!(text, "  {name:<32}{:>10}", size(bytes))?;
    }
    let verdict = if plan.fits { "fits" } else { "does not fit" };
    writeln!(text, "  {verdict} into {}\n", size(plan.memory_bytes))?;
    if let Some(rows) = plan.rows_kept {
        let all = args.examples as u64;
        let verdict = if rows >= all {
            format!("all {} rows fit beside it", grouped(args.examples as i64))
        } else {
            format!(
                "{} of {} rows fit beside it; --reuse-dir DIR keeps the others in a file",
                grouped(rows as i64),
                grouped(args.examples as i64)
            )
        };
        let kept = size(step.kept_row * all);
        writeln!(text, "frozen work kept for later epochs: {kept}; {verdict}\n")?;
    }
    writeln!(text, "in other ways")?;
    for way in &plan.ways {
        let verdict = if way.fits { "fits" } else { "does not fit" };
        writeln!(text, "  {:<62}{:>10}  {verdict}", way.flags, size(way.peak_bytes))?;
    }
    let source = if plan.is_rate_measured { "measured here" } else { "as given" };
    writeln!(
        text,
        "\ntime, at {EFFICIENCY} of {:.3} · 10¹² operations a second ({source})",
        plan.rate / 1e12
    )?;
    writeln!(text, "  a step of the first epoch  {:>9.3} s", plan.first_epoch_seconds_per_step)?;
    writeln!(text, "  a step of later epochs     {:>9.3} s", plan.later_epochs_seconds_per_step)?;
    let minutes = plan.seconds / 60.0;
    writeln!(
        text,
        "  {} steps ({} examples, {} epochs): {minutes:.1} min",
        grouped(plan.steps as i64),
        grouped(args.examples as i64),
        args.epochs
    )?;
    if !plan.fits {
        let way = plan.ways.iter().find(|way| way.fits);
        match way {
            Some(way) => writeln!(text, "\nto make it fit: {}", way.flags)?,
            None => writeln!(
                text,
                "\nnone of these ways fits; take a smaller model, or shorter rows (--max-length)"
            )?,
        }
    }
    Ok(text)
}
