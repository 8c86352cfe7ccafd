use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use reft_models::{Claim, write_json_in_order};
use tch::Device;

use crate::compare::plan::{ComparisonPlan, version_in};
use crate::compare::sharing::begin;
use crate::{
    Cell, CompareConfig, Error, LoadedComparison, Result, SweepPlan, SweepPoint, SweepReport,
    run_comparison,
};

/// A sweep with all its points read, tokenised and checked.
#[derive(Debug)]
pub struct LoadedSweep {
    /// The work to be done.
    pub plan: SweepPlan,
    points: Vec<LoadedComparison>,
}

impl LoadedSweep {
    /// Reads and checks everything that the points need, except for the model's weights.
    ///
    /// `config` is the comparison in force, and `points` are its points: [`ConfigFile::points`](crate::ConfigFile::points). If there is a
    /// sweep in `output`, this is a continuation of it.
    ///
    /// # Errors
    /// If there is no point, and as [`LoadedComparison::new`].
    pub fn new(
        config: CompareConfig,
        points: Vec<SweepPoint>,
        command: &str,
        output: &Path,
        device: Device,
    ) -> Result<Self> {
        let none = || Error::File {
            path: PathBuf::from(&config.name),
            reason: "the comparison has no sweep; give it [sweep.x] and [sweep.y]".to_owned(),
        };
        let sweep = config.sweep.clone().ok_or_else(none)?;
        let metric = points.first().ok_or_else(none)?.comparison.task.metric();
        let mut format_version = ComparisonPlan::FORMAT_VERSION;
        let plan_of = |point: &SweepPoint| point.plan.directory.join(ComparisonPlan::FILE_NAME);
        for file in points.iter().map(plan_of).chain([SweepPlan::FILE_NAME.into()]) {
            let found = version_in(&output.join(file))?;
            format_version = format_version.min(found.unwrap_or(format_version));
        }
        let plan = SweepPlan {
            format_version,
            command: command.to_owned(),
            sweep,
            metric,
            points: points.iter().map(|point| point.plan.clone()).collect(),
            config,
        };
        let load = |point: SweepPoint| {
            LoadedComparison::of_version(format_version, point.comparison, command, device)
        };
        Ok(Self { plan, points: points.into_iter().map(load).collect::<Result<_>>()? })
    }
}

/// Runs the comparison of every point that is not finished, and writes the sweep's report after each: `report.json`, `report.md`,
/// `report.html`. Every point's directory is a comparison of its own.
///
/// `run` runs a cell of the comparison in a directory; `say` receives lines of progress.
///
/// # Errors
/// As [`run_comparison`], which has a `stop` too.
pub fn run_sweep(
    loaded: &LoadedSweep,
    output: &Path,
    run: &mut dyn FnMut(&Path, &Cell) -> Result<()>,
    say: &mut dyn FnMut(&str),
    stop: &AtomicBool,
) -> Result<SweepReport> {
    let directories: Vec<PathBuf> =
        loaded.plan.points.iter().map(|point| output.join(&point.directory)).collect();
    // all plans are written first, so that no report shows results of older plans
    for (point, directory) in loaded.points.iter().zip(&directories) {
        begin(&point.plan, directory)?;
    }
    write_json_in_order(&output.join(SweepPlan::FILE_NAME), &loaded.plan)?;
    let n = directories.len();
    for (i, (point, directory)) in loaded.points.iter().zip(&directories).enumerate() {
        say(&format!("point {} of {n}: {}", i + 1, loaded.plan.points[i].name));
        share_base(&point.plan, directory, &directories[..i])?;
        run_comparison(point, directory, &mut |cell| run(directory, cell), say, stop)?;
        SweepReport::collect(output)?.write(output)?;
    }
    SweepReport::collect(output)
}

/// Copies the base model's results from another point, if one has a result with the same identity.
fn share_base(plan: &ComparisonPlan, directory: &Path, others: &[PathBuf]) -> Result<()> {
    if Cell::BASE.is_done(plan, directory)? {
        return Ok(());
    }
    for other in others {
        if let Some(known) = Cell::BASE.result(plan, other)? {
            let own = Cell::BASE.directory(plan, directory);
            // a process that holds the claim copies the same result
            return Claim::take(&own)?.map_or(Ok(()), |_claim| known.write(&own));
        }
    }
    Ok(())
}
