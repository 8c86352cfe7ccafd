use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_bench::{TrainingRun, runs_page};
use reft_models::write_text;

use crate::terminal::{command, note};

/// Put training runs side by side on a page
///
/// Losses, rates, speeds and replies to sample prompts of runs of `reft train`, whether they are finished or still go on, and the options in
/// which they differ. A single run's page is `report.html` in its directory, which the run itself draws while it goes on.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  reft report runs/loreft runs/lora --output runs/both.html
  reft report runs/loreft")]
pub struct ReportArgs {
    /// Directories of runs
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// The page [default: report.html in the directory of a single run]
    #[arg(long, value_name = "FILE.html")]
    output: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &ReportArgs) -> Result<()> {
    let output = match (&args.output, &args.runs[..]) {
        (Some(output), _) => output.clone(),
        (None, [run]) => run.join(TrainingRun::PAGE),
        (None, _) => bail!("--output is missing: the page of several runs"),
    };
    let read = |directory: &PathBuf| {
        TrainingRun::read(directory)
            .with_context(|| format!("{} holds no run of reft train", directory.display()))
    };
    let runs = args.runs.iter().map(read).collect::<Result<Vec<_>>>()?;
    write_text(&output, &runs_page(&runs, &command()))?;
    note(format!("page: {}", output.display()));
    Ok(())
}
