//! `reft compare`: methods beside each other on one task.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use reft_bench::{
    Cell, ConfigFile, Error, Plan, Prepared, PreparedSweep, Report, SweepPlan, SweepReport,
    TaskConfig, run_cell, run_comparison, run_sweep,
};
use reft_models::{DecoderConfig, resolve_model};
use serde::Serialize;

use crate::command_line::{check_output, command};
use crate::failure::INTERRUPTED;
use crate::interrupt;
use crate::machine::{DeviceChoice, set_threads};
use crate::output::{self, note};
use crate::train_progress::TrainProgress;

/// Compare fine-tuning methods: same data, budget and seeds, one report
///
/// Every method is tried with each of its learning rates; the rate that does best on the validation set is run with every seed and
/// tested. The report (`report.json`, `report.md`, `report.html`) is written after each method. Ctrl-C stops; the same command goes on
/// after the runs that are finished. Each run has a process of its own, so its peak memory is its own. With `[sweep.x]` and `[sweep.y]`
/// in the configuration two values are varied: a comparison is run at each point of their grid, and the report has heat maps.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Comparison",
    after_long_help = "Examples:
  reft compare --config recipes/sst2.toml --model models/SmolLM2-135M-Instruct --data data/sst2 --output runs/sst2
  reft compare --config recipes/sst2.toml --model models/SmolLM2-135M-Instruct --data data/sst2 --output runs/quick --quick
  reft compare --config recipes/memorise.toml --model models/SmolLM2-135M-Instruct --data data --output runs/memorise
  reft compare --report-only runs/sst2"
)]
pub struct CompareArgs {
    /// What is compared: methods with options and learning rates, task, data, budget, seeds
    #[arg(long, value_name = "FILE.toml", required_unless_present = "report_only")]
    config: Option<PathBuf>,
    /// Directory to write: the report, and a directory per run; new, empty, or that of the same comparison
    #[arg(long, value_name = "DIR", required_unless_present = "report_only")]
    output: Option<PathBuf>,
    /// Write the report of this comparison anew, and run nothing
    #[arg(long, value_name = "DIR", conflicts_with_all = ["config", "output", "model", "data", "quick"])]
    report_only: Option<PathBuf>,
    /// Model, in place of the configuration's
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// Directory of the data files, in place of the configuration's
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A small version: one learning rate, one seed, and the sizes under `[quick]`
    #[arg(long)]
    quick: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Where runs compute.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// Where to compute: auto, cpu or cuda:N [default: auto = the first GPU if there is one]
    #[arg(long, value_name = "DEVICE", default_value_t, hide_default_value = true)]
    device: DeviceChoice,
    /// CPU threads to compute with [default: one per core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// One run of a comparison, in a process of its own.
#[derive(Debug, Args)]
pub struct CellArgs {
    #[arg(long)]
    output: PathBuf,
    #[arg(long)]
    method: Option<usize>,
    #[arg(long)]
    lr: f64,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    test: bool,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Runs the command.
pub fn run(args: &CompareArgs) -> Result<ExitCode> {
    let (config, output) = match (&args.config, &args.output, &args.report_only) {
        (_, _, Some(output)) => return report_only(args, output),
        (Some(config), Some(output), None) => (config, output),
        _ => bail!("--config and --output are needed"),
    };
    let work = prepare(args, config)?;
    let (file, threads) = match &work {
        Work::Comparison(prepared) => (Plan::FILE_NAME, prepared.plan.machine.threads),
        Work::Sweep(prepared) => (SweepPlan::FILE_NAME, prepared.threads()),
    };
    check_output(output, file, "comparison")?;
    let machine = [
        "--device".to_owned(),
        args.machine.device.to_string(),
        "--threads".to_owned(),
        threads.to_string(),
    ];
    let stop = interrupt::stop_flag("stopping; finished runs are kept (again: stop at once)")?;
    let mut run = |output: &Path, cell: &Cell| run_in_child(cell, output, &machine, &stop);
    let say = &mut |text: &str| note(text);
    let shown = match &work {
        Work::Comparison(prepared) => {
            run_comparison(prepared, output, &mut |cell| run(output, cell), say)
                .map(|report| show(args, &report, &report.markdown(), output))
        }
        Work::Sweep(prepared) => run_sweep(prepared, output, &mut run, say)
            .map(|report| show(args, &report, &report.markdown(), output)),
    };
    match shown {
        Ok(shown) => shown,
        Err(Error::Interrupted) => {
            note("interrupted; finished runs are kept, the same command goes on after them");
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(error).context("the comparison stopped; finished runs are kept"),
    }
}

/// Writes the report of what is there.
fn report_only(args: &CompareArgs, output: &Path) -> Result<ExitCode> {
    let none = || format!("{} holds no comparison", output.display());
    if output.join(SweepPlan::FILE_NAME).is_file() {
        let report = SweepReport::collect(output).with_context(none)?;
        report.write(output)?;
        return show(args, &report, &report.markdown(), output);
    }
    let report = Report::collect(output).with_context(none)?;
    report.write(output)?;
    show(args, &report, &report.markdown(), output)
}

/// What is to be run.
enum Work {
    Comparison(Box<Prepared>),
    /// A comparison at each point of a grid.
    Sweep(Box<PreparedSweep>),
}

/// Reads and checks everything: what is wrong is said before any training.
fn prepare(args: &CompareArgs, config: &Path) -> Result<Work> {
    let device = args.machine.device.resolve()?;
    set_threads(args.machine.threads)?;
    let file = ConfigFile::open(config)?;
    let mut config = if args.quick { file.config.clone().quick() } else { file.config.clone() };
    if let Some(model) = &args.model {
        config.model.clone_from(model);
    }
    if config.model.is_empty() {
        bail!("no model: give --model, or model in {}", file.path.display());
    }
    if args.data.is_some() {
        config.data.directory.clone_from(&args.data);
    }
    config.neutral = config.neutral.map(|neutral| file.beside(&neutral));
    let task = TaskConfig::open(&file.beside(&config.task))?;
    let train_task = config.train_task.as_ref().map(|task| TaskConfig::open(&file.beside(task)));
    let train_task = train_task.transpose()?;
    let shape = DecoderConfig::open(&resolve_model(&config.model)?)
        .with_context(|| format!("cannot load model {}", config.model))?;
    file.check_methods(&shape)?;
    let points = file.points(&config, &task, train_task.as_ref(), &shape)?;
    Ok(match points.is_empty() {
        true => {
            Work::Comparison(Box::new(Prepared::new(config, task, train_task, command(), device)?))
        }
        false => Work::Sweep(Box::new(PreparedSweep::new(config, points, &command(), device)?)),
    })
}

fn show(
    args: &CompareArgs,
    report: &impl Serialize,
    markdown: &str,
    output: &Path,
) -> Result<ExitCode> {
    if args.json {
        output::json(report)?;
    } else {
        output::piece(markdown)?;
        note(&format!("report: {}", output.join("report.html").display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// How often a run is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Runs a cell in a process of its own. Asked to stop, it is ended: what it has not finished is not there.
fn run_in_child(
    cell: &Cell,
    output: &Path,
    machine: &[String],
    stop: &AtomicBool,
) -> reft_bench::Result<()> {
    let failed = |reason: String| Error::File { path: output.to_owned(), reason };
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let mut command = Command::new(program);
    command.arg("compare-cell").arg("--output").arg(output).args(machine);
    command.args(["--lr", &cell.lr.to_string(), "--seed", &cell.seed.to_string()]);
    if let Some(method) = cell.method {
        command.args(["--method", &method.to_string()]);
    }
    if cell.test {
        command.arg("--test");
    }
    let mut child: Child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| failed(format!("a run cannot be started: {error}")))?;
    loop {
        let status = child.try_wait().map_err(|error| failed(error.to_string()))?;
        if stop.load(Ordering::Relaxed) {
            // it may be gone already
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::Interrupted);
        }
        match status {
            Some(status) if status.success() => return Ok(()),
            Some(status) if status.code() == Some(INTERRUPTED.into()) => {
                return Err(Error::Interrupted);
            }
            Some(status) => return Err(failed(format!("a run failed: {status}"))),
            None => thread::sleep(LOOK),
        }
    }
}

/// Runs the hidden command.
pub fn run_one_cell(args: &CellArgs) -> Result<ExitCode> {
    set_threads(args.machine.threads)?;
    let device = args.machine.device.resolve()?;
    let prepared = Prepared::from_plan(&args.output, device)?;
    let methods = prepared.plan.config.method.len();
    if let Some(method) = args.method.filter(|&method| method >= methods) {
        return Err(anyhow!("method {method} is not there; the comparison has {methods}"));
    }
    let stop = interrupt::stop_flag("stopping this run")?;
    let cell = Cell { method: args.method, lr: args.lr, seed: args.seed, test: args.test };
    let mut progress = TrainProgress::new();
    let done = run_cell(&prepared, &cell, &args.output, &mut progress, &stop);
    progress.close();
    match done {
        Err(Error::Interrupted) => Ok(ExitCode::from(INTERRUPTED)),
        done => {
            let name = cell.name(&prepared.plan);
            done.with_context(|| format!("cannot run {name}"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
