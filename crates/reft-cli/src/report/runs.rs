use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_bench::{TrainingRun, runs_page};
use reft_causal::{DasReport, searches_page};
use reft_models::{read_json, write_text};

use crate::terminal::{command, note};

/// Put training runs, or searches of `reft das`, on one page to compare them
///
/// For searches the page shows a heat map for each search and rank, all on one scale of colours. For runs of `reft train`, finished
/// or still going, it shows losses, learning rates, speeds, replies to sample prompts, and the options in which the runs differ. The page of a
/// single run is `report.html` in its directory; the run itself redraws it while it goes on.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  reft report runs/loreft runs/lora --output runs/both.html
  reft report runs/loreft
  reft report runs/das/left runs/das/right --output runs/das/both.html")]
pub struct ReportArgs {
    /// Directories of runs, or of searches
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// Page to write [default: report.html in the directory of a single run]
    #[arg(long, value_name = "FILE.html")]
    output: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &ReportArgs) -> Result<()> {
    let is_search = |directory: &PathBuf| directory.join(DasReport::FILE_NAME).is_file();
    if args.runs.iter().any(is_search) {
        return searches(args);
    }
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

/// The page of searches.
fn searches(args: &ReportArgs) -> Result<()> {
    let Some(output) = &args.output else { bail!("--output is missing: the page of the searches") };
    let read = |directory: &PathBuf| -> Result<(String, DasReport)> {
        let found = read_json(&directory.join(DasReport::FILE_NAME))
            .with_context(|| format!("{} holds no search of reft das", directory.display()))?;
        let name = directory.file_name().unwrap_or(directory.as_os_str());
        Ok((name.to_string_lossy().into_owned(), found))
    };
    let searches = args.runs.iter().map(read).collect::<Result<Vec<_>>>()?;
    write_text(output, &searches_page(&searches, &command()))?;
    note(format!("page: {}", output.display()));
    Ok(())
}
