use anyhow::{Context, Result, bail};
use bytesize::ByteSize;
use clap::Args;
use reft_bench::{EFFICIENCY, Machine, StepPlan, TimingCase, Way, plan_step, product_rate, ways};
use reft_train::resident_memory;
use serde_json::{Value, json};

use crate::cost::split::{DeviceMemories, SplitPlan};
use crate::cost::step_args::StepArgs;
use crate::options::{check_counts, in_flags, method_name};
use crate::terminal::{counted, grouped, output};

/// Predict the memory and time of training, without reading any weights
///
/// Memory is the peak of a step. It is computed from the model's shape, the method and the batch. Time is the number of operations divided by
/// the rate of matrix products. The rate is measured briefly on this device; --tflops gives the rate of another machine. If the run does not
/// fit into the memory, the plan names flags that make it fit.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Run",
    after_long_help = "Examples:
  reft plan --model models/SmolLM2-135M-Instruct --method loreft --positions l1 --batch-size 8
  reft plan --model-config recipes/sizes/llama-3-8b.json --method loreft --rank 4 --positions l1 --kind bf16 --memory 24GB --tflops 80
  reft plan --model-config recipes/sizes/llama-3-70b.json --method loreft --rank 8 --positions l1 --kind bf16 --devices 4x48GB --processes 8 --tflops 400"
)]
pub struct PlanArgs {
    /// Method, or several at once as loreft+lora
    #[arg(long, value_parser = method_name, default_value = "loreft")]
    method: String,
    /// Available memory, such as 24GB [default: all memory of this machine]
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Memory of each device that the model is split over, such as 4x24GB or 2x80GB,24GB; not with --memory
    #[arg(long, value_name = "SIZES", conflicts_with = "memory")]
    devices: Option<DeviceMemories>,
    /// Processes that share a step; each has the devices of --devices
    #[arg(long, value_name = "N", default_value_t = 1, requires = "devices")]
    processes: usize,
    /// Number of examples in the training set
    #[arg(long, value_name = "N", default_value_t = 1000)]
    examples: usize,
    /// Passes over the training set
    #[arg(long, value_name = "N", default_value_t = 3)]
    epochs: usize,
    /// Rate of matrix products of another machine, in 10¹² operations a second [default: measured on this one]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    tflops: Option<f64>,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    step: StepArgs,
}

/// Runs the command.
pub fn run(args: &PlanArgs) -> Result<()> {
    if let Some(rate) = args.tflops.filter(|rate| !(*rate > 0.0 && rate.is_finite())) {
        bail!("--tflops is {rate}, expected a number above 0");
    }
    check_counts([
        ("--examples", args.examples),
        ("--epochs", args.epochs),
        ("--processes", args.processes),
    ])?;
    let (floor, shape) = args.step.case()?;
    let case = TimingCase { method: args.method.clone(), ..floor };
    case.check(&shape).map_err(in_flags)?;
    let machine = &args.step.machine.0;
    let device = machine.device.one()?;
    machine.set_up()?;
    let split = args.devices.as_ref();
    let split = split.map(|own| SplitPlan::of(&case, &shape, own, args.processes)).transpose()?;
    let memory = args.memory.map(|size| size.as_u64()).or(Machine::here(device).memory_bytes);
    let memory = memory.context("the system does not tell its memory; give --memory")?;
    let tokens = (case.batch_size * (case.prompt_length + case.response_length)) as i64;
    let rate = args.tflops.map_or_else(
        || {
            let (d, f) = (shape.hidden_size, shape.intermediate_size);
            product_rate(tokens.min(1024), d, f, case.kind.kind(), device)
        },
        |rate| rate * 1e12,
    );
    // read after the products, so that the memory of libtorch's threads is included
    let program = resident_memory().context("the system does not tell this process's memory")?;
    let step = plan_step(&case, program).map_err(in_flags)?;
    let way = |way: Way| {
        let peak = plan_step(&way.case, program).map_err(in_flags)?.memory.total();
        Ok((way.flags, peak))
    };
    let ways = ways(&case, &shape).into_iter().skip(1).map(way).collect::<Result<_>>()?;
    let plan = Plan { args, case, step, memory, rate, ways, split };
    output::result(args.json, &plan.json(), || output::piece(&plan.text()))
}

/// A plan to be printed.
struct Plan<'a> {
    args: &'a PlanArgs,
    case: TimingCase,
    step: StepPlan,
    /// Available memory in bytes.
    memory: u64,
    /// Rate of matrix products, in operations per second.
    rate: f64,
    /// Other flags, each with its peak memory in bytes.
    ways: Vec<(String, u64)>,
    /// The plan on several devices, with `--devices`.
    split: Option<SplitPlan>,
}

impl Plan<'_> {
    fn fits(&self, peak: u64) -> bool {
        peak <= self.memory
    }

    /// Number of rows whose cached activations fit beside the peak of a step; `None` if no rows are cached.
    fn rows_kept(&self) -> Option<u64> {
        let kept_row = self.step.kept_row;
        (kept_row > 0).then(|| self.memory.saturating_sub(self.step.memory.total()) / kept_row)
    }

    /// Seconds of a step of the first epoch, of a step of later epochs, and of all steps; then the number of steps.
    fn times(&self) -> (f64, f64, f64, usize) {
        let seconds_of = |work: f64| work / (self.rate * EFFICIENCY);
        let (work, epochs) = (&self.step.work, self.args.epochs);
        let (first, later) = (seconds_of(work.first_epoch), seconds_of(work.later_epochs));
        let steps = self.args.examples.div_ceil(self.case.batch_size);
        let seconds = steps as f64 * (first + (epochs - 1) as f64 * later);
        (first, later, seconds, steps * epochs)
    }

    fn json(&self) -> Value {
        let (first, later, seconds, steps) = self.times();
        let peak = self.step.memory.total();
        let way = |(flags, peak): &(String, u64)| json!({"flags": flags, "peak_bytes": peak, "fits": self.fits(*peak)});
        let mut json = json!({
            "method": self.case.method,
            "kind": self.case.kind,
            "memory_bytes": self.memory,
            "peak_bytes": peak,
            "fits": self.fits(peak),
            "step": self.step,
            "rows_kept": self.rows_kept(),
            "rate": self.rate,
            "is_rate_measured": self.args.tflops.is_none(),
            "first_epoch_seconds_per_step": first,
            "later_epochs_seconds_per_step": later,
            "steps": steps,
            "seconds": seconds,
            "ways": self.ways.iter().map(way).collect::<Vec<_>>(),
        });
        if let Some(split) = &self.split {
            json["split"] = split.json();
        }
        json
    }

    /// The parts of the peak, and other flags with their peaks.
    fn on_one_device(&self) -> String {
        let size = |bytes: u64| ByteSize::b(bytes).display().si().to_string();
        let verdict = |peak| if self.fits(peak) { "fits" } else { "does not fit" };
        let (step, memory) = (&self.step, &self.step.memory);
        let mut text = "\nmemory at the peak of a step\n".to_owned();
        for (name, bytes) in [
            ("program and libtorch", memory.program),
            ("weights", memory.weights),
            ("trained tensors and AdamW", memory.optimizer),
            ("activations", memory.activations),
            ("logits or gradients of a block", memory.transient),
            ("cached activations of the batch", memory.frozen_batch),
            ("all", memory.total()),
        ] {
            text += &format!("  {name:<32}{:>10}\n", size(bytes));
        }
        text += &format!("  {} into {}\n\n", verdict(memory.total()), size(self.memory));
        let (all, examples) = (self.args.examples as u64, grouped(self.args.examples as i64));
        if let Some(rows) = self.rows_kept() {
            let (kept, rows_text) = (size(step.kept_row * all), grouped(rows as i64));
            let verdict = match rows >= all {
                true => format!("all {examples} rows fit beside it"),
                false => format!(
                    "{rows_text} of {examples} rows fit beside it; --reuse-dir DIR keeps the others in a file"
                ),
            };
            text += &format!("frozen work kept for later epochs: {kept}; {verdict}\n\n");
        }
        text += "with other flags\n";
        for (flags, peak) in &self.ways {
            text += &format!("  {flags:<62}{:>10}  {}\n", size(*peak), verdict(*peak));
        }
        text
    }

    fn text(&self) -> String {
        let (case, step) = (&self.case, &self.step);
        let TimingCase { method, batch_size, prompt_length, response_length, .. } = case;
        let (kind, trained) = (case.kind.name(), grouped(step.trainable_parameters));
        let mut text = format!(
            "{method} in {kind}, batches of {batch_size} rows of {prompt_length} + {response_length} tokens: {trained} trained parameters\n"
        );
        match &self.split {
            Some(split) => text += &split.text(),
            None => text += &self.on_one_device(),
        }
        let source = if self.args.tflops.is_none() { "measured here" } else { "as given" };
        let (rate, epochs) = (self.rate / 1e12, counted(self.args.epochs, "epoch"));
        let (first, later, seconds, steps) = self.times();
        let (steps, minutes) = (counted(steps, "step"), seconds / 60.0);
        let examples = counted(self.args.examples, "example");
        text += &format!(
            "
time, at {EFFICIENCY} of {rate:.3} · 10¹² operations a second ({source})
  a step of the first epoch  {first:>9.3} s
  a step of later epochs     {later:>9.3} s
  {steps} ({examples}, {epochs}): {minutes:.1} min
"
        );
        if self.split.is_some() || self.fits(step.memory.total()) {
            return text;
        }
        let way = self.ways.iter().find(|(_, peak)| self.fits(*peak));
        const NONE: &str =
            "none of these ways fits; take a smaller model, or shorter rows (--max-length)";
        text += &way.map_or(format!("\n{NONE}\n"), |way| format!("\nto make it fit: {}\n", way.0));
        text
    }
}
