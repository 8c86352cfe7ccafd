use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use reft_bench::TrainingRun;
use reft_methods::{adapters_in, remove_adapter};
use reft_models::write_text;
use toml::{Table, toml};

use crate::terminal::holds;
use crate::train::card::remove_card;
use crate::train::config_file;
use crate::train::run_options::in_toml;
use crate::train::watch::tensorboard::EVENTS;

/// The options in force, beside the run's files.
const OPTIONS: &str = TrainingRun::OPTIONS;
const METRICS: &str = TrainingRun::METRICS;
const CHECKPOINTS: &str = "checkpoint";

/// First line of [`OPTIONS`], which marks the directory of a run.
const HEADER: &str = "# The options of a run of `reft train`, with every default filled in.";

/// Options that may change when a run is resumed. They change no number, or only its rounding. Model and data are compared by content, not
/// by path. The length of the run may grow, which the trainer checks.
const FREE: [&str; 23] = [
    "model",
    "data",
    "validation_data",
    "replay",
    "epochs",
    "max_steps",
    "patience",
    "sample_prompt",
    "sample_every",
    "sample_tokens",
    "log",
    "license",
    "columns",
    "output",
    "threads",
    "device",
    "tf32",
    "checkpoint_every",
    "checkpoint_activations",
    "no_reuse",
    "reuse_memory",
    "reuse_dir",
    "reduce",
];

/// The option with a path that is compared in canonical form.
const PATH: &str = "init_adapter";

/// The options of the run in a directory, if there is one.
///
/// # Errors
/// If they cannot be read.
pub fn options_of_run(directory: &Path) -> Result<Option<Table>> {
    if !holds_run(directory)? {
        return Ok(None);
    }
    config_file::read(&directory.join(OPTIONS)).map(Some)
}

/// Whether a directory holds a run of `reft train`.
///
/// # Errors
/// If it holds something else.
pub fn holds_run(directory: &Path) -> Result<bool> {
    holds(directory, "run of reft train", (OPTIONS, HEADER))
}

/// Checks that a resumed run has the options that it was begun with.
///
/// # Errors
/// The first option that differs.
pub fn check_same(saved: &Table, now: &Table) -> Result<()> {
    // values of options that earlier versions did not have
    let of_earlier_versions = toml! { weights = "dense"
    int8_products = false
    rotation_lr_factor = 1.0
    turns = "last"
    learn_prompt = false };
    let saved = config_file::overlaid(&of_earlier_versions, saved);
    let names = saved.keys().chain(now.keys()).filter(|name| !FREE.contains(&name.as_str()));
    for name in names {
        if !is_same(name, &saved, now) {
            let text = |table: &Table| {
                table.get(name).map_or_else(|| "not set".to_owned(), toml::Value::to_string)
            };
            let (field, saved, now) = (name.clone(), text(&saved), text(now));
            return Err(reft_train::Error::ResumeMismatch { field, saved, now }.into());
        }
    }
    Ok(())
}

fn is_same(name: &str, saved: &Table, now: &Table) -> bool {
    let (saved, now) = (saved.get(name), now.get(name));
    let file = |value: Option<&toml::Value>| fs::canonicalize(value?.as_str()?).ok();
    saved == now || (name == PATH && file(saved).is_some() && file(saved) == file(now))
}

/// The output directory of a run. When it is dropped without a checkpoint or an adapter, the run's files are removed, unless an earlier run
/// was there.
#[derive(Debug)]
pub struct TrainDirectory {
    path: PathBuf,
    /// Whether a run was there before.
    had_run: bool,
}

impl TrainDirectory {
    /// Makes the directory ready, and writes the options in force into it.
    ///
    /// # Errors
    /// If files cannot be removed or written.
    pub fn prepare(
        path: &Path,
        overwrites: bool,
        options: &Table,
        notes: &[String],
    ) -> Result<Self> {
        let mut had_run = holds_run(path)?;
        if overwrites && had_run {
            remove_run(path)?;
            had_run = false;
        }
        let directory = Self { path: path.to_owned(), had_run };
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        let notes: String = notes.iter().map(|note| format!("# {note}\n")).collect();
        let text = format!("{HEADER}\n{notes}\n{}", in_toml(options));
        write_text(&path.join(OPTIONS), &text)?;
        Ok(directory)
    }

    /// A sentence about the files that a failed run has left.
    pub fn after_failure(&self) -> String {
        let name = self.path.display();
        match (self.is_worth_keeping(), self.had_run) {
            (true, _) => format!("training stopped; its newest checkpoint is in {name}"),
            (false, true) => format!("training failed; {name} has no checkpoint yet"),
            (false, false) => "training failed; nothing was written".to_owned(),
        }
    }

    /// Whether there is a checkpoint or an adapter.
    fn is_worth_keeping(&self) -> bool {
        let checkpoints = fs::read_dir(self.path.join(CHECKPOINTS));
        let is_whole = |file: fs::DirEntry| file.file_name().to_string_lossy().starts_with("step-");
        checkpoints.is_ok_and(|files| files.flatten().any(is_whole))
            || adapters_in(&self.path).is_ok()
    }

    /// Loss of the run's first step, which an earlier process may have taken.
    pub fn first_loss(&self) -> Option<f64> {
        let metrics = fs::read_to_string(self.path.join(METRICS)).ok()?;
        let rows = metrics.lines().filter_map(|line| serde_json::from_str(line).ok());
        rows.map(|row: serde_json::Value| row["loss"].as_f64()).find_map(|loss| loss)
    }
}

impl Drop for TrainDirectory {
    fn drop(&mut self) {
        if !self.had_run && !self.is_worth_keeping() {
            // An error is ignored, because `drop` cannot return it.
            let _ = remove_run(&self.path);
        }
    }
}

/// Removes the files of a run, and nothing else; [`OPTIONS`] last, so that the directory is recognised until then.
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
    removed(directory, remove_card(directory))?;
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let is_events = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(EVENTS))
    };
    let events = entries.map(|entry| entry.path()).filter(is_events);
    let names = [METRICS, TrainingRun::SAMPLES, TrainingRun::PAGE, OPTIONS];
    for file in events.chain(names.map(|name| directory.join(name))) {
        removed(&file, fs::remove_file(&file))?;
    }
    Ok(())
}
