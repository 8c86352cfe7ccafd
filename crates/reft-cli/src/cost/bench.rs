use std::io::{Read, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use reft_bench::{Error, FLOOR, Measured, TimingCase, measure, run_timing};

use crate::cost::step_args::StepArgs;
use crate::machine::{MachineOptions, memory_in_use, place_flags};
use crate::options::{Flags, check_counts, in_flags, method_name};
use crate::terminal::{note, output};

/// Time a training step of several methods, and of the frozen floor, on the same batches
///
/// The floor is a step of the frozen model without any method: forward, logits at the labels only, and backward down to the embeddings.
/// A method's step is the trainer's step: forward, backward, clipping and AdamW. The methods take turns. Each method runs in processes of
/// its own, so its peak memory is measured alone. If a method's activations are cached, the figures are from steps on cached rows. The
/// first epoch, which computes these activations, has a separate column. A method option applies to the methods that have it.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Measurement",
    after_long_help = "Examples:
  reft bench --model models/SmolLM2-135M-Instruct --methods floor,loreft,lora --batch-size 8 --prompt-length 120 --response-length 8 \\
      --rank 8 --positions f7+l7 --share-weights --threads 2
  reft bench --model-config llama-3.2-1b/config.json --random-weights --methods floor,loreft --kind bf16 --json
  reft bench --model models/SmolLM2-135M-Instruct --methods floor,loreft --batch-size 1 --steps 1 --generate 64"
)]
pub struct BenchArgs {
    /// Fill the model of --model-config with random weights; the time does not depend on them
    #[arg(long, help_heading = "Model", requires = "model_config", conflicts_with = "model")]
    random_weights: bool,
    /// Cases to time: floor, and methods of `reft train`; loreft+lora is one case with both methods
    #[arg(long, value_delimiter = ',', value_parser = timed, default_value = "floor,loreft")]
    methods: Vec<String>,
    /// Timed steps of each method; warm-up steps are not counted
    #[arg(long, value_name = "N", default_value_t = 6)]
    steps: usize,
    /// Turns of each method; its steps are divided among the turns
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Also time the generation of N tokens after each prompt of a batch; 0 = no generation
    #[arg(long, value_name = "N", default_value_t = 0)]
    generate: usize,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    step: StepArgs,
}

/// One method's turn, in a process of its own: the case comes on stdin, the measurements go to stdout.
#[derive(Debug, Args)]
pub struct CaseArgs {
    #[command(flatten)]
    machine: Flags<MachineOptions>,
}

/// The name of a case to time: methods, or the frozen floor.
fn timed(text: &str) -> Result<String> {
    match text.trim() {
        FLOOR => Ok(FLOOR.to_owned()),
        name => method_name(name).map_err(|error| anyhow!("{error}, or {FLOOR}")),
    }
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<()> {
    let (cases, rounds) = plan(args)?;
    let machine = &args.step.machine.0;
    let device = machine.device.one()?;
    let mut flags = place_flags(device, machine.set_up()?).to_vec();
    flags.extend(machine.tf32.then(|| "--tf32".to_owned()));
    let mut run_one = |case: &TimingCase| run_in_child(case, &flags);
    let report = run_timing(&cases, rounds, device, &mut run_one, &mut |text| note(text))?;
    output::result(args.json, &report, || output::piece(&report.table()))
}

/// Collects the cases and the number of rounds, and checks all of it before the first weight is read.
fn plan(args: &BenchArgs) -> Result<(Vec<TimingCase>, usize)> {
    check_counts([("--rounds", args.rounds), ("--steps", args.steps)])?;
    for (i, method) in args.methods.iter().enumerate() {
        if args.methods[..i].contains(method) {
            bail!("--methods names {method} twice; name each method once");
        }
    }
    if args.step.model_config.is_some() && !args.random_weights {
        bail!("--model-config has a shape and no weights; add --random-weights, or give --model");
    }
    let rounds = args.rounds.min(args.steps);
    let (case, shape) = args.step.case()?;
    let case = TimingCase { steps: args.steps.div_ceil(rounds), new_tokens: args.generate, ..case };
    let of_method = |method: &String| {
        let case = TimingCase { method: method.clone(), ..case.clone() };
        case.check(&shape).map_err(in_flags)?;
        Ok(case)
    };
    let cases = args.methods.iter().map(of_method).collect::<Result<_>>()?;
    Ok((cases, rounds))
}

/// Times a case in a process of its own. Ctrl-C ends both processes.
fn run_in_child(case: &TimingCase, flags: &[String]) -> reft_bench::Result<Measured> {
    let attempt = || -> Result<Measured> {
        let program = std::env::current_exe().context("this program cannot be found")?;
        let mut child = Command::new(program)
            .arg("bench-case")
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("a process cannot be started")?;
        let mut stdin = child.stdin.take().expect("invariant: stdin is piped");
        // an error means that the child has ended early; its stderr, read below, has the reason
        let _ = stdin.write_all(serde_json::to_string(case)?.as_bytes());
        drop(stdin);
        let ended = child.wait_with_output().context("a process cannot be waited for")?;
        if !ended.status.success() {
            let said = String::from_utf8_lossy(&ended.stderr);
            let said = said.trim().trim_start_matches("error: ").replace("\n  caused by", "");
            bail!("it ended with {}: {said}", ended.status);
        }
        serde_json::from_slice(&ended.stdout).context("its result cannot be read")
    };
    let method = case.method.clone();
    attempt().map_err(|error| Error::Timing { method, reason: format!("{error:#}") })
}

/// Runs the hidden command.
pub fn run_one_case(args: &CaseArgs) -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("the case cannot be read")?;
    let case: TimingCase = serde_json::from_str(&text).context("the case cannot be understood")?;
    args.machine.0.set_up()?;
    let device = args.machine.0.device.one()?;
    let mut measured = measure(&case, device)?;
    measured.device_memory_bytes = device.is_cuda().then(memory_in_use).flatten();
    output::json(&measured)
}
