use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_bench::{
    Cell, Comparison, ComparisonPlan, ConfigFile, Error, LoadedComparison, LoadedSweep, Report,
    SweepPlan, SweepReport, TaskConfig, run_cell, run_comparison, run_sweep,
};

use crate::machine::{DeviceAndThreads, place_flags};
use crate::model::open_config;
use crate::options::Flags;
use crate::terminal::{
    INTERRUPTED, TrainProgress, command, counted, end_at_once, holds, note, show, stop_flag,
};

/// Compare fine-tuning methods: same data, budget and seeds, one report
///
/// Every method is tried with each of its learning rates. The rate with the best result on the validation set is run with every seed and
/// tested. The report (`report.json`, `report.md`, `report.html`) is written after each method. Ctrl-C stops; the same command continues
/// after the finished runs. Each run has a process of its own, so its peak memory is measured alone. With `[sweep.x]` and `[sweep.y]` in
/// the configuration, two values are varied: a comparison is run at each point of their grid, and the report has heat maps.
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
    /// The comparison: methods with options and learning rates, task, data, budget, seeds
    #[arg(long, value_name = "FILE.toml", required_unless_present = "report_only")]
    config: Option<PathBuf>,
    /// Directory to write: the report, and a directory per run; new, empty, or the same comparison's
    #[arg(long, value_name = "DIR", required_unless_present = "report_only")]
    output: Option<PathBuf>,
    /// Rewrite the report of the comparison in this directory, and run nothing
    #[arg(long, value_name = "DIR", conflicts_with_all = ["config", "output", "model", "data", "quick"])]
    report_only: Option<PathBuf>,
    /// Model to use instead of the configuration's
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// Directory of the data files, instead of the configuration's
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A small version: one learning rate, one seed, and the sizes under `[quick]`
    #[arg(long)]
    quick: bool,
    /// Also write each tested run in another form: peft
    ///
    /// peft writes one file per run into the directory `peft`, in the form of PEFT's method_comparison.
    #[arg(long, value_name = "NAME")]
    report_format: Option<ReportFormat>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Flags<DeviceAndThreads>,
}

/// The form of the runs' files, beside the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ReportFormat {
    /// The JSON of PEFT's method_comparison.
    Peft,
}

/// Writes the runs of a comparison in the form of `--report-format`, if it is given.
fn write_runs(args: &CompareArgs, report: &Report, output: &Path) -> Result<()> {
    if args.report_format == Some(ReportFormat::Peft) {
        let files = report.write_peft(output)?;
        note(format!(
            "{} as PEFT has them: {}",
            counted(files.len(), "run"),
            output.join("peft").display()
        ));
    }
    Ok(())
}

/// Refuses `--report-format` for a sweep.
fn check_sweep(args: &CompareArgs) -> Result<()> {
    if args.report_format.is_some() {
        bail!(
            "--report-format is of comparisons at one point; leave it out of a sweep, and name the directory of a point with --report-only"
        );
    }
    Ok(())
}

/// One run of a comparison, in a process of its own.
#[derive(Debug, Args)]
pub struct CellArgs {
    #[arg(long)]
    output: PathBuf,
    /// The run in JSON
    #[arg(long)]
    cell: String,
    #[command(flatten)]
    place: Flags<DeviceAndThreads>,
}

/// Runs the command.
pub fn run(args: &CompareArgs) -> Result<()> {
    let (config, output) = match (&args.config, &args.output, &args.report_only) {
        (_, _, Some(output)) => return report_only(args, output),
        (Some(config), Some(output), None) => (config, output),
        _ => bail!("--config and --output are needed"),
    };
    let (device, threads) = args.place.0.set_up()?;
    let machine = place_flags(device, threads);
    let file = ConfigFile::open(config)?;
    let comparison = comparison(args, &file)?;
    let shape = open_config(&comparison.config.model)?.1.describe();
    if comparison.task.kind.told().is_none() {
        shape.check_predicts("reft compare")?;
    }
    file.check_methods(&shape)?;
    let points = file.points(&comparison, &shape)?;
    let run_in = |output: &Path, cell: &Cell, stop| run_in_child(cell, output, &machine, stop);
    let notice = "stopping; finished runs are kept (again: stop at once)";
    let (command, say) = (command(), &mut |text: &str| note(text));
    let stopped = "the comparison stopped; finished runs are kept";
    if points.is_empty() {
        let loaded = LoadedComparison::new(comparison, &command, output, device)?;
        holds(output, "comparison", (ComparisonPlan::FILE_NAME, ""))?;
        let stop = stop_flag(notice)?;
        let report =
            run_comparison(&loaded, output, &mut |cell| run_in(output, cell, stop), say, stop);
        let report = report.context(stopped)?;
        write_runs(args, &report, output)?;
        return show(args.json, &report, &report.markdown(), &output.join("report.html"));
    }
    check_sweep(args)?;
    // a comparison at each point of a grid
    let loaded = LoadedSweep::new(comparison.config, points, &command, output, device)?;
    holds(output, "comparison", (SweepPlan::FILE_NAME, ""))?;
    let stop = stop_flag(notice)?;
    let report = run_sweep(&loaded, output, &mut |at, cell| run_in(at, cell, stop), say, stop);
    let report = report.context(stopped)?;
    show(args.json, &report, &report.markdown(), &output.join("report.html"))
}

/// Writes the report of the finished runs.
fn report_only(args: &CompareArgs, output: &Path) -> Result<()> {
    let none = || format!("{} holds no comparison", output.display());
    if output.join(SweepPlan::FILE_NAME).is_file() {
        check_sweep(args)?;
        let report = SweepReport::collect(output).with_context(none)?;
        report.write(output)?;
        return show(args.json, &report, &report.markdown(), &output.join("report.html"));
    }
    let report = Report::collect(output).with_context(none)?;
    report.write(output)?;
    write_runs(args, &report, output)?;
    show(args.json, &report, &report.markdown(), &output.join("report.html"))
}

/// The comparison: the file, with the command line's values for some fields.
fn comparison(args: &CompareArgs, file: &ConfigFile) -> Result<Comparison> {
    let mut config = file.config.clone();
    if args.quick {
        config = config.quick();
    }
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
    config.replay = config.replay.map(|replay| file.beside(&replay));
    let task = TaskConfig::open(&file.beside(&config.task))?;
    let train_task = config.train_task.as_ref().map(|task| TaskConfig::open(&file.beside(task)));
    Ok(Comparison { train_task: train_task.transpose()?, config, task })
}

/// Interval between two looks at a run's process.
const LOOK: Duration = Duration::from_millis(100);

/// Runs a cell in a process of its own. A stop request kills the process, and its unfinished work is lost.
fn run_in_child(
    cell: &Cell,
    output: &Path,
    machine: &[String],
    stop: &AtomicBool,
) -> reft_bench::Result<()> {
    let failed = |reason: String| Error::File { path: output.to_owned(), reason };
    let start = || -> Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("compare-cell").arg("--output").arg(output).args(machine);
        command.arg("--cell").arg(serde_json::to_string(cell)?);
        // the child ends at the end of its stdin, which comes however this process ends
        Ok(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?)
    };
    let mut child = start().map_err(|error| failed(format!("a run cannot be started: {error}")))?;
    loop {
        let status = child.try_wait().map_err(|error| failed(error.to_string()))?;
        if stop.load(Ordering::Relaxed) {
            // an error means that the child has ended already
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

/// Ends this process when its parent has ended, because then nobody renews the claim on its cell.
fn end_with_parent() {
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        end_at_once();
    });
}

/// Runs the hidden command.
pub fn run_one_cell(args: &CellArgs) -> Result<()> {
    end_with_parent();
    let (device, _) = args.place.0.set_up()?;
    let cell: Cell = serde_json::from_str(&args.cell).context("--cell is no run")?;
    let loaded = LoadedComparison::from_plan(&args.output, device)?;
    let methods = loaded.plan.config.method.len();
    if let Some(method) = cell.method.filter(|&method| method >= methods) {
        bail!("method {method} is not there; the comparison has {methods}");
    }
    let stop = stop_flag("stopping this run")?;
    let mut progress = TrainProgress::new();
    let done = run_cell(&loaded, &cell, &args.output, &mut progress, stop);
    progress.close();
    done.with_context(|| format!("cannot run {}", cell.name(&loaded.plan)))
}
