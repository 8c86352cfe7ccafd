//! Where `reft train` writes: whose directory it is, and what is left there when a run fails.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use reft_bench::{AdapterKind, adapter_bytes, remove_adapter};
use reft_models::{WeightStorage, atomic_write};
use toml::Table;

use crate::config_file;
use crate::train_options::TrainOptions;

/// The options in force, beside what they made.
const OPTIONS: &str = "train.toml";
const METRICS: &str = "metrics.jsonl";
const CHECKPOINTS: &str = "checkpoint";

/// First line of [`OPTIONS`]: by it a directory of ours is known.
const HEADER: &str = "# The options of a run of `reft train`, with every default filled in.";

/// Options that may change when a run goes on: they change no number, or only how it is rounded.
const FREE: [&str; 9] = [
    "output",
    "threads",
    "device",
    "tf32",
    "checkpoint_every",
    "checkpoint_activations",
    "no_reuse",
    "reuse_memory",
    "reuse_dir",
];

/// Options that name files, in whatever spelling.
const PATHS: [&str; 3] = ["model", "data", "init_adapter"];

/// What is to become of an earlier run in the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It is kept, and the new run refused.
    Refuse,
    /// It goes on.
    Resume,
    /// Its files are removed.
    Overwrite,
}

/// The options of the run in a directory, if there is one.
///
/// # Errors
/// If they cannot be read.
pub fn options_of_run(directory: &Path) -> Result<Option<TrainOptions>> {
    if !holds_run(directory)? {
        return Ok(None);
    }
    config_file::read(&directory.join(OPTIONS)).map(Some)
}

/// Whether a directory holds a run of ours; it is an error if it holds something else.
fn holds_run(directory: &Path) -> Result<bool> {
    let name = directory.display();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("cannot write into {name}")),
    };
    match fs::read_to_string(directory.join(OPTIONS)) {
        Ok(text) if text.starts_with(HEADER) => return Ok(true),
        _ => {}
    }
    let is_foreign = |name: &str| !name.starts_with(".partial-"); // what a killed program leaves
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {name}"))?;
        if is_foreign(&entry.file_name().to_string_lossy()) {
            bail!(
                "{name} is not empty and no run of reft train (it holds {}); name another directory",
                entry.file_name().display()
            );
        }
    }
    Ok(false)
}

/// Checks that a run may write into a directory.
///
/// # Errors
/// If it holds something that is not ours, or a run that is neither to be resumed nor overwritten.
pub fn check(directory: &Path, existing: Existing) -> Result<()> {
    if holds_run(directory)? && existing == Existing::Refuse {
        bail!(
            "{} holds a training run already; go on with it with --resume, remove it with --overwrite, or name another directory",
            directory.display()
        );
    }
    Ok(())
}

/// What a run was done with whose `train.toml` was written before there were these options.
fn options_of_earlier_versions() -> TrainOptions {
    TrainOptions {
        weights: Some(WeightStorage::Dense),
        rotation_lr_factor: Some(1.0),
        ..TrainOptions::default()
    }
}

/// Checks that a run goes on with the options that it was begun with.
///
/// # Errors
/// The first option that differs.
pub fn check_same(saved: &TrainOptions, now: &TrainOptions) -> Result<()> {
    let saved = config_file::overlaid(&options_of_earlier_versions(), saved)?;
    let (saved, now) = (config_file::table(&saved)?, config_file::table(now)?);
    let names = saved.keys().chain(now.keys()).filter(|name| !FREE.contains(&name.as_str()));
    for name in names {
        if !is_same(name, &saved, &now) {
            let text = |table: &Table| {
                table.get(name).map_or_else(|| "not set".to_owned(), toml::Value::to_string)
            };
            let (field, saved, now) = (name.clone(), text(&saved), text(&now));
            return Err(reft_train::Error::ResumeMismatch { field, saved, now }.into());
        }
    }
    Ok(())
}

fn is_same(name: &str, saved: &Table, now: &Table) -> bool {
    let (saved, now) = (saved.get(name), now.get(name));
    let file = |value: Option<&toml::Value>| fs::canonicalize(value?.as_str()?).ok();
    saved == now || (PATHS.contains(&name) && file(saved).is_some() && file(saved) == file(now))
}

/// A directory that a run writes into. Unless a checkpoint or an adapter has got there, nothing is left of it when it is dropped.
#[derive(Debug)]
pub struct TrainDirectory {
    path: PathBuf,
    /// Directories that were not there before, the innermost first.
    made: Vec<PathBuf>,
}

impl TrainDirectory {
    /// Makes the directory ready, and writes the options in force into it.
    ///
    /// # Errors
    /// If files cannot be removed or written.
    pub fn prepare(
        path: &Path,
        existing: Existing,
        options: &TrainOptions,
        notes: &[String],
    ) -> Result<Self> {
        if existing == Existing::Overwrite && holds_run(path)? {
            remove_run(path)?;
        }
        let made = path.ancestors().take_while(|dir| !dir.exists() && *dir != Path::new(""));
        let directory = Self { path: path.to_owned(), made: made.map(Path::to_owned).collect() };
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        let notes: String = notes.iter().map(|note| format!("# {note}\n")).collect();
        let options = toml::to_string(options).context("cannot write the options as TOML")?;
        let file = path.join(OPTIONS);
        atomic_write::<anyhow::Error>(&file, |temporary| {
            fs::write(temporary, format!("{HEADER}\n{notes}\n{options}"))
                .with_context(|| format!("cannot write {}", file.display()))
        })?;
        Ok(directory)
    }

    /// Whether something is there that a later run can use.
    pub fn is_worth_keeping(&self) -> bool {
        let checkpoints = fs::read_dir(self.path.join(CHECKPOINTS));
        let is_whole =
            |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with("step-");
        checkpoints.is_ok_and(|entries| entries.flatten().any(is_whole))
            || AdapterKind::of(&self.path).is_ok()
    }

    /// Loss of the run's first step, which another program may have taken.
    pub fn first_loss(&self) -> Option<f64> {
        let metrics = fs::read_to_string(self.path.join(METRICS)).ok()?;
        let rows = metrics.lines().filter_map(|line| serde_json::from_str(line).ok());
        rows.map(|row: serde_json::Value| row["loss"].as_f64()).find_map(|loss| loss)
    }

    /// Size of the adapter's files in bytes.
    ///
    /// # Errors
    /// If they are not there.
    pub fn adapter_bytes(&self) -> Result<u64> {
        Ok(adapter_bytes(&self.path)?)
    }
}

impl Drop for TrainDirectory {
    fn drop(&mut self) {
        if self.is_worth_keeping() {
            return;
        }
        // What cannot be removed stays: there is nobody left to tell.
        let _ = remove_run(&self.path);
        for directory in &self.made {
            let _ = fs::remove_dir(directory); // only if it is empty
        }
    }
}

/// Removes the files of a run, and nothing else; [`OPTIONS`] last, so that the directory is known as ours to the end.
fn remove_run(directory: &Path) -> Result<()> {
    let removed = |path: &Path, result: std::io::Result<()>| match result {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    };
    let checkpoints = directory.join(CHECKPOINTS);
    removed(&checkpoints, fs::remove_dir_all(&checkpoints))?;
    remove_adapter(directory)?;
    for name in [METRICS, OPTIONS] {
        let file = directory.join(name);
        removed(&file, fs::remove_file(&file))?;
    }
    Ok(())
}
