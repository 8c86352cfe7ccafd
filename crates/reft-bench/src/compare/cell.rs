use std::path::{Path, PathBuf};

use reft_models::atomic_write;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::compare::config::slug;
use crate::compare::plan::Plan;
use crate::error::{Error, Result, io_error};
use crate::tasks::Score;

/// One run of the comparison: a method with a learning rate and a seed, or the base model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Index of the method in the plan; `None`: the base model, untrained.
    pub method: Option<usize>,
    /// Learning rate.
    pub lr: f64,
    /// Seed.
    pub seed: u64,
    /// Whether it is measured on the test sets too: rates that are not chosen never see them.
    pub test: bool,
}

/// What is known of a cell: its `cell.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// Digest of everything that the numbers depend on.
    pub identity: String,
    /// Learning rate.
    pub lr: f64,
    /// Seed.
    pub seed: u64,
    /// Why training ended early, if it did: a loss that is no number.
    pub diverged: Option<String>,
    /// Optimizer steps taken.
    pub steps: usize,
    /// Trainable numbers.
    pub trainable_parameters: i64,
    /// Size of the adapter's files.
    pub adapter_bytes: u64,
    /// Wall time of all training steps.
    pub train_seconds: f64,
    /// Tokens trained on, padding not among them.
    pub train_tokens: usize,
    /// The most memory that the process had held when training was over, where the system tells it.
    pub peak_memory_bytes: Option<u64>,
    /// Training loss before each step.
    pub losses: Vec<f64>,
    /// The task on the validation set.
    pub validation: Option<Score>,
    /// Loss of the validation set's completions, which breaks ties.
    pub validation_loss: Option<f64>,
    /// What was measured on the test sets, if that was wanted.
    pub test: Option<TestResult>,
}

/// What is measured once a rate is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestResult {
    /// The task on each test set, in the order of the configuration.
    pub scores: Vec<Score>,
    /// Loss on the neutral text, if there is one.
    pub neutral_loss: Option<f64>,
    /// Tokens generated per second, eight prompts at once, if the task has prompts.
    pub generation_tokens_per_second: Option<f64>,
}

impl Cell {
    /// The base model.
    pub const BASE: Self = Self { method: None, lr: 0.0, seed: 0, test: true };

    /// The cell's own directory below the comparison's.
    pub fn directory(&self, plan: &Plan, output: &Path) -> PathBuf {
        output.join("cells").join(self.name(plan))
    }

    /// What the cell is called: `loreft/lr-0.004/seed-0`.
    pub fn name(&self, plan: &Plan) -> String {
        match self.method {
            None => "base".to_owned(),
            Some(i) => {
                let label = slug(plan.config.method[i].label());
                format!("{label}/lr-{}/seed-{}", self.lr, self.seed)
            }
        }
    }

    /// Digest of everything that the cell's numbers depend on.
    pub(crate) fn identity(&self, plan: &Plan) -> String {
        let entry = self.method.map(|i| &plan.config.method[i]);
        let method = entry.map(|entry| (&entry.method, &entry.options));
        let mut identity = json!({ "method": method, "lr": self.lr, "seed": self.seed });
        if let Some(factor) = entry.and_then(|entry| entry.rotation_lr_factor) {
            identity["rotation_lr_factor"] = json!(factor);
        }
        plan.digest(&identity)
    }

    /// What is known of the cell, if it has been run as the plan has it.
    ///
    /// # Errors
    /// If its file cannot be read.
    pub fn result(&self, plan: &Plan, output: &Path) -> Result<Option<CellResult>> {
        let path = self.directory(plan, output).join(CellResult::FILE_NAME);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let result: Option<CellResult> = serde_json::from_slice(&text).ok();
        Ok(result.filter(|result| result.identity == self.identity(plan)))
    }

    /// Whether nothing of the cell is left to be done.
    ///
    /// # Errors
    /// If its file cannot be read.
    pub fn is_done(&self, plan: &Plan, output: &Path) -> Result<bool> {
        let result = self.result(plan, output)?;
        Ok(result.is_some_and(|r| r.diverged.is_some() || !self.test || r.test.is_some()))
    }
}

impl CellResult {
    /// Name of the file.
    pub const FILE_NAME: &str = "cell.json";

    /// Tokens trained on per second of the training steps.
    pub fn tokens_per_second(&self) -> f64 {
        self.train_tokens as f64 / self.train_seconds
    }

    /// Writes `cell.json`, whole or not at all.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        write_json(&directory.join(Self::FILE_NAME), self)
    }
}

/// Writes a JSON file, whole or not at all.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let json = |source| reft_models::Error::Json { path: path.to_owned(), source };
    let text = serde_json::to_string_pretty(value).map_err(json)? + "\n";
    write_text(path, &text)
}

/// Writes a text file, whole or not at all.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    atomic_write::<Error>(path, |temporary| {
        std::fs::write(temporary, text).map_err(io_error("write", path))
    })
}
