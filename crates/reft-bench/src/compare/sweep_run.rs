use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::Device;

use crate::compare::cell::{Cell, write_json};
use crate::compare::config::CompareConfig;
use crate::compare::plan::Plan;
use crate::compare::prepared::Prepared;
use crate::compare::run::run_comparison;
use crate::compare::sweep::{SweepConfig, SweepPoint};
use crate::error::{Error, Result, io_error, read_text};
use crate::report::SweepReport;
use crate::tasks::Metric;

/// Everything that a sweep is: its `sweep.json`. What is run at a point is in the point's own `plan.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepPlan {
    /// Version of the files of a sweep.
    pub format_version: u32,
    /// The command that began it.
    pub command: String,
    /// The configuration in force.
    pub config: CompareConfig,
    /// The two values that are varied.
    pub sweep: SweepConfig,
    /// What scores are.
    pub metric: Metric,
    /// The points, row by row.
    pub points: Vec<PointPlan>,
}

/// A point of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointPlan {
    /// Index of the column.
    pub x: usize,
    /// Index of the row.
    pub y: usize,
    /// What it is called.
    pub name: String,
    /// The directory of its comparison, below the sweep's.
    pub directory: PathBuf,
}

/// A sweep with everything of all its points read, tokenised and checked.
#[derive(Debug)]
pub struct PreparedSweep {
    /// What is going to be done.
    pub plan: SweepPlan,
    points: Vec<Prepared>,
}

impl SweepPlan {
    /// Name of the file.
    pub const FILE_NAME: &str = "sweep.json";

    /// Version of the files that this program writes.
    pub const FORMAT_VERSION: u32 = 1;

    /// Reads the plan of a sweep.
    ///
    /// # Errors
    /// If there is none, or it is not what this program writes.
    pub fn read(output: &Path) -> Result<Self> {
        let path = output.join(Self::FILE_NAME);
        let plan: Self = serde_json::from_str(&read_text(&path)?)
            .map_err(|source| reft_models::Error::Json { path: path.clone(), source })?;
        if plan.format_version != Self::FORMAT_VERSION {
            let (found, expected) = (plan.format_version, Self::FORMAT_VERSION);
            let reason = format!("format_version is {found}, this program reads {expected}");
            return Err(Error::File { path, reason });
        }
        Ok(plan)
    }
}

impl PreparedSweep {
    /// Reads and checks what every point needs, except for the model's weights.
    ///
    /// `config` is the comparison in force, and `points` are its points: [`ConfigFile::points`](crate::ConfigFile::points).
    ///
    /// # Errors
    /// If there is no point, and as [`Prepared::new`].
    pub fn new(
        config: CompareConfig,
        points: Vec<SweepPoint>,
        command: &str,
        device: Device,
    ) -> Result<Self> {
        let none = || Error::File {
            path: PathBuf::from(&config.name),
            reason: "the comparison has no sweep; give it [sweep.x] and [sweep.y]".to_owned(),
        };
        let sweep = config.sweep.clone().ok_or_else(none)?;
        let metric = points.first().ok_or_else(none)?.task.kind.metric();
        let plans = points.iter().map(|point| PointPlan {
            x: point.x,
            y: point.y,
            name: point.name.clone(),
            directory: point.directory.clone(),
        });
        let plan = SweepPlan {
            format_version: SweepPlan::FORMAT_VERSION,
            command: command.to_owned(),
            sweep,
            metric,
            points: plans.collect(),
            config,
        };
        let prepare = |point: SweepPoint| {
            let SweepPoint { config, task, train_task, .. } = point;
            Prepared::new(config, task, train_task, command.to_owned(), device)
        };
        Ok(Self { plan, points: points.into_iter().map(prepare).collect::<Result<_>>()? })
    }

    /// CPU threads that runs compute with.
    pub fn threads(&self) -> usize {
        self.points.first().map_or(1, |point| point.plan.machine.threads)
    }
}

/// Runs the comparison of every point that is not finished, and writes the sweep's report after each: `report.json`, `report.md`,
/// `report.html`. Every point's directory is a comparison of its own.
///
/// `run` runs a cell of the comparison in a directory; `say` hears what is going on.
///
/// # Errors
/// As [`run_comparison`].
pub fn run_sweep(
    prepared: &PreparedSweep,
    output: &Path,
    run: &mut dyn FnMut(&Path, &Cell) -> Result<()>,
    say: &mut dyn FnMut(&str),
) -> Result<SweepReport> {
    let directories: Vec<PathBuf> =
        prepared.plan.points.iter().map(|point| output.join(&point.directory)).collect();
    // the plans come first: what older ones have left behind is in no report
    for (point, directory) in prepared.points.iter().zip(&directories) {
        std::fs::create_dir_all(directory).map_err(io_error("create", directory))?;
        point.plan.write(directory)?;
    }
    write_json(&output.join(SweepPlan::FILE_NAME), &prepared.plan)?;
    let n = directories.len();
    for (i, (point, directory)) in prepared.points.iter().zip(&directories).enumerate() {
        say(&format!("point {} of {n}: {}", i + 1, prepared.plan.points[i].name));
        share_base(&point.plan, directory, &directories[..i])?;
        run_comparison(point, directory, &mut |cell| run(directory, cell), say)?;
        SweepReport::collect(output)?.write(output)?;
    }
    SweepReport::collect(output)
}

/// Takes over the base model's numbers from a point where they cannot be others.
fn share_base(plan: &Plan, directory: &Path, others: &[PathBuf]) -> Result<()> {
    if Cell::BASE.is_done(plan, directory)? {
        return Ok(());
    }
    for other in others {
        if let Some(known) = Cell::BASE.result(plan, other)? {
            let own = Cell::BASE.directory(plan, directory);
            std::fs::create_dir_all(&own).map_err(io_error("create", &own))?;
            return known.write(&own);
        }
    }
    Ok(())
}
