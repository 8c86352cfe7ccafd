//! `reft bench`: what a training step costs, method beside method.

use std::fmt;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_bench::{
    Error, FLOOR, Measured, MethodOptions, Precision, TargetModules, TimingCase, TimingRun,
    measure, method_names, run_timing,
};
use reft_core::Positions;
use reft_models::{Component, resolve_model};
use tch::Kind;

use crate::layers::Layers;
use crate::machine::{DeviceChoice, KindChoice, set_threads};
use crate::method_name::MethodName;
use crate::output::{self, note};
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
    /// Model: a Hugging Face directory, a GGUF file, or a hub name such as org/name
    #[arg(
        long,
        value_name = "DIR",
        help_heading = "Model",
        required_unless_present = "model_config"
    )]
    model: Option<String>,
    /// A config.json: a model of this shape, without a download
    #[arg(
        long,
        value_name = "FILE.json",
        help_heading = "Model",
        conflicts_with = "model",
        requires = "random_weights"
    )]
    model_config: Option<PathBuf>,
    /// Make up the weights of --model-config; time does not depend on them
    #[arg(long, help_heading = "Model", requires = "model_config", conflicts_with = "model")]
    random_weights: bool,
    /// Kind of the frozen model's numbers: f32, bf16 or f16 [default: f32]
    #[arg(
        long,
        value_name = "KIND",
        default_value_t,
        hide_default_value = true,
        help_heading = "Model"
    )]
    kind: KindChoice,

    /// floor, and any methods of `reft train`; several at once as loreft+lora
    #[arg(
        long,
        value_name = "METHODS",
        value_delimiter = ',',
        default_value = "floor,loreft",
        help_heading = "Methods"
    )]
    methods: Vec<Timed>,
    /// Layers, counted from 0: all, 15, or 3;9;18 [default: all]
    #[arg(long, value_name = "LAYERS", help_heading = "Methods")]
    layers: Option<Layers>,
    /// Rank r: dimension of the subspace that ReFT edits, B·A of LoRA [default: 8]
    #[arg(long, value_name = "R", allow_negative_numbers = true, help_heading = "Methods")]
    rank: Option<i64>,
    /// ReFT: prompt tokens to edit, f7+l7 = first 7 and last 7 [default: f7+l7]
    #[arg(long, value_name = "POSITIONS", help_heading = "Methods")]
    positions: Option<Positions>,
    /// ReFT: one intervention per layer for first and last tokens, not one for each [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", default_value = "false", hide_default_value = true, require_equals = true, help_heading = "Methods")]
    share_weights: bool,
    /// ReFT: block_input, attention_output, mlp_output or block_output [default: block_output]
    #[arg(long, value_name = "COMPONENT", help_heading = "Methods")]
    component: Option<Component>,
    /// LoRA and (IA)³: projections, as q_proj,v_proj or all-linear [default: all seven; (IA)³: k_proj,v_proj,down_proj]
    #[arg(long, value_name = "MODULES", help_heading = "Methods")]
    target_modules: Option<TargetModules>,
    /// Prefix and prompt: number of virtual tokens [default: 20]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Methods")]
    n_virtual_tokens: Option<i64>,

    /// Rows of a batch
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Batch")]
    batch_size: usize,
    /// Prompt tokens of a row
    #[arg(long, value_name = "N", default_value_t = 120, help_heading = "Batch")]
    prompt_length: usize,
    /// Tokens of a row after the prompt, all of them labels
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Batch")]
    response_length: usize,

    /// Steps of each method whose time counts, beside those that warm up
    #[arg(long, value_name = "N", default_value_t = 6, help_heading = "Measurement")]
    steps: usize,
    /// Turns of each method: the steps are shared out among them
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Measurement")]
    rounds: usize,
    /// Compute the frozen model's part of a row in every step
    #[arg(long, help_heading = "Measurement")]
    no_reuse: bool,
    /// Also time the generation of N tokens after each prompt of a batch; 0: do not
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Measurement")]
    generate: usize,
    /// Where to compute: auto, cpu or cuda:N [default: auto = the first GPU if there is one]
    #[arg(
        long,
        value_name = "DEVICE",
        default_value_t,
        hide_default_value = true,
        help_heading = "Measurement"
    )]
    device: DeviceChoice,
    /// CPU threads to compute with [default: one per core]
    #[arg(long, value_name = "N", help_heading = "Measurement")]
    threads: Option<usize>,
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
    let device = args.device.resolve()?;
    let threads = set_threads(args.threads)?;
    let mut run_one = |case: &TimingCase| run_in_child(case, DeviceChoice::of(device), threads);
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
    let (model, name) = match (&args.model, &args.model_config) {
        (Some(model), None) => (resolve_model(model)?, model.clone()),
        (None, Some(file)) => (file.clone(), file.display().to_string()),
        _ => bail!("--model or --model-config is needed, and not both"),
    };
    let rounds = args.rounds.min(args.steps);
    let mut case = TimingCase {
        model,
        random_weights: args.random_weights,
        kind: precision(args.kind),
        method: FLOOR.to_owned(),
        options: MethodOptions::default(),
        batch_size: args.batch_size,
        prompt_length: args.prompt_length,
        response_length: args.response_length,
        steps: args.steps.div_ceil(rounds),
        reuse: !args.no_reuse,
        new_tokens: args.generate,
    };
    let shape = case.model_config().with_context(|| format!("cannot load model {name}"))?;
    let layers = args.layers.as_ref();
    case.options = MethodOptions {
        layers: layers.map(|layers| layers.of_model(shape.num_hidden_layers)).transpose()?,
        rank: args.rank,
        positions: args.positions,
        share_weights: Some(args.share_weights),
        component: args.component.map(|component| component.to_string()),
        target_modules: args.target_modules.clone(),
        n_virtual_tokens: args.n_virtual_tokens,
        ..MethodOptions::default()
    };
    let of_method = |method: &Timed| {
        let case = TimingCase { method: method.0.clone(), ..case.clone() };
        case.check(&shape).map_err(in_flags)?;
        Ok(case)
    };
    let cases = args.methods.iter().map(of_method).collect::<Result<_>>()?;
    Ok(TimingRun { cases, rounds })
}

fn precision(kind: KindChoice) -> Precision {
    match kind.0 {
        Kind::BFloat16 => Precision::Bf16,
        Kind::Half => Precision::F16,
        _ => Precision::F32,
    }
}

/// Times a case in a process of its own, which ends with this one when both are interrupted.
fn run_in_child(
    case: &TimingCase,
    device: DeviceChoice,
    threads: usize,
) -> reft_bench::Result<Measured> {
    let attempt = || -> Result<Measured> {
        let program = std::env::current_exe().context("this program cannot be found")?;
        let mut child = Command::new(program)
            .args(["bench-case", "--device", &device.to_string()])
            .args(["--threads", &threads.to_string()])
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
    output::json(&measure(&case, args.device.resolve()?)?)?;
    Ok(ExitCode::SUCCESS)
}
