//! `reft bench`: what a training step costs, method beside method.

use std::fmt;
use std::io::{Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_bench::{
    Error, FLOOR, Measured, TimingCase, TimingRun, measure, method_names, run_timing,
};

use crate::cuda_driver::memory_in_use;
use crate::machine::{DeviceChoice, set_tf32, set_threads};
use crate::method_name::MethodName;
use crate::output::{self, note};
use crate::step_args::StepArgs;
use crate::train_method::in_flags;

/// Time a training step of several methods, and of the frozen floor, on the same batches
///
/// The floor is what the frozen model costs before any method does something: forward, logits at labels only, and backward down to the
/// embeddings. A step is the trainer's own: forward, backward, clipping, AdamW. Every method runs in processes of its own, so its peak
/// memory is its own, and the methods take turns. Where the frozen model's part of rows is kept, the figures are those of steps on rows that
/// are kept; the first epoch, in which that part is computed, stands beside them. An option is taken by the methods that have it.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  reft bench --model models/SmolLM2-135M-Instruct --methods floor,loreft,lora --batch-size 8 --prompt-length 120 --response-length 8 \\
      --rank 8 --positions f7+l7 --share-weights --threads 2
  reft bench --model-config llama-3.2-1b/config.json --random-weights --methods floor,loreft --kind bf16 --json
  reft bench --model models/SmolLM2-135M-Instruct --methods floor,loreft --batch-size 1 --steps 1 --generate 64")]
pub struct BenchArgs {
    #[command(flatten)]
    step: StepArgs,
    /// Make up the weights of --model-config; time does not depend on them
    #[arg(long, help_heading = "Model", requires = "model_config", conflicts_with = "model")]
    random_weights: bool,
    /// floor, and any methods of `reft train`; several at once as loreft+lora
    #[arg(
        long,
        value_name = "METHODS",
        value_delimiter = ',',
        default_value = "floor,loreft",
        help_heading = "Method"
    )]
    methods: Vec<Timed>,

    /// Steps of each method whose time counts, beside those that warm up
    #[arg(long, value_name = "N", default_value_t = 6, help_heading = "Measurement")]
    steps: usize,
    /// Turns of each method: the steps are shared out among them
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Measurement")]
    rounds: usize,
    /// Also time the generation of N tokens after each prompt of a batch; 0: do not
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Measurement")]
    generate: usize,
    /// Print the result as JSON
    #[arg(long, help_heading = "Measurement")]
    json: bool,
}

/// One method's turn, in a process of its own: the case comes on stdin, what was measured goes to stdout.
#[derive(Debug, Args)]
pub struct CaseArgs {
    #[arg(long)]
    device: DeviceChoice,
    #[arg(long)]
    threads: usize,
    #[arg(long)]
    tf32: bool,
}

/// What can be timed: a method, or the frozen floor.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Timed(String);

impl FromStr for Timed {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let name = text.trim();
        if name == FLOOR {
            return Ok(Self(name.to_owned()));
        }
        match name.parse::<MethodName>() {
            Ok(name) => Ok(Self(name.to_string())),
            Err(Error::UnknownMethod { found, .. }) => {
                let accepted = method_names().join(", ");
                bail!(
                    "unknown method {found:?}; use {FLOOR}, or one of {accepted}, or several of these joined with +"
                )
            }
            Err(other) => Err(other.into()),
        }
    }
}

impl fmt::Display for Timed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<ExitCode> {
    let run = plan(args)?;
    let device = args.step.device.resolve()?;
    let threads = set_threads(args.step.threads)?;
    let machine = CaseArgs { device: DeviceChoice::of(device), threads, tf32: args.step.tf32 };
    let mut run_one = |case: &TimingCase| run_in_child(case, &machine);
    let report = run_timing(&run, device, &mut run_one, &mut |text| note(text))?;
    if args.json {
        output::json(&report)?;
    } else {
        output::piece(&report.table())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts together what is timed, and checks all of it before the first weight is read.
fn plan(args: &BenchArgs) -> Result<TimingRun> {
    for (flag, value) in [("--rounds", args.rounds), ("--steps", args.steps)] {
        if value == 0 {
            bail!("{flag} is 0, expected at least 1");
        }
    }
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
    let of_method = |method: &Timed| {
        let case = TimingCase { method: method.0.clone(), ..case.clone() };
        case.check(&shape).map_err(in_flags)?;
        Ok(case)
    };
    let cases = args.methods.iter().map(of_method).collect::<Result<_>>()?;
    Ok(TimingRun { cases, rounds })
}

/// Times a case in a process of its own, which ends with this one when both are interrupted.
fn run_in_child(case: &TimingCase, machine: &CaseArgs) -> reft_bench::Result<Measured> {
    let attempt = || -> Result<Measured> {
        let program = std::env::current_exe().context("this program cannot be found")?;
        let mut child = Command::new(program)
            .args(["bench-case", "--device", &machine.device.to_string()])
            .args(["--threads", &machine.threads.to_string()])
            .args(machine.tf32.then_some("--tf32"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("a process cannot be started")?;
        let mut stdin = child.stdin.take().expect("invariant: stdin is piped");
        // if the child ends before it has read its case, it says why
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
    attempt().map_err(|error| Error::Timing {
        method: case.method.clone(),
        reason: format!("{error:#}"),
    })
}

/// Runs the hidden command.
pub fn run_one_case(args: &CaseArgs) -> Result<ExitCode> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("the case cannot be read")?;
    let case: TimingCase = serde_json::from_str(&text).context("the case cannot be understood")?;
    set_threads(Some(args.threads))?;
    set_tf32(args.tf32)?;
    let device = args.device.resolve()?;
    let mut measured = measure(&case, device)?;
    measured.device_memory_bytes = device.is_cuda().then(memory_in_use).flatten();
    output::json(&measured)?;
    Ok(ExitCode::SUCCESS)
}
