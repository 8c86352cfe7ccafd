use std::path::{Path, PathBuf};

use reft_methods::SHARE_WEIGHTS;
use reft_models::{io_error, write_json_in_order};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::compare::config::slug;
use crate::{ComparisonPlan, Result, Score};

/// One run of the comparison: a method with a learning rate and a seed, or the base model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Index of the method in the plan; `None`: the base model, untrained.
    pub method: Option<usize>,
    /// Learning rate.
    pub lr: f64,
    /// Seed.
    pub seed: u64,
    /// Whether it is measured on the test sets too. Only runs at the chosen rate are.
    pub test: bool,
}

/// The state of a cell: its `cell.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// Digest of everything that the numbers depend on.
    pub identity: String,
    /// Learning rate.
    pub lr: f64,
    /// Seed.
    pub seed: u64,
    /// Why training ended early, if it did: a loss that is not finite.
    pub diverged: Option<String>,
    /// Optimizer steps taken.
    pub steps: usize,
    /// Trainable parameters.
    pub trainable_parameters: i64,
    /// Size of the adapter's files.
    pub adapter_bytes: u64,
    /// Wall time of all training steps.
    pub train_seconds: f64,
    /// Tokens trained on, padding not among them.
    pub train_tokens: usize,
    /// The process's peak memory up to the end of training, where the system reports it.
    pub peak_memory_bytes: Option<u64>,
    /// Training loss before each step.
    pub losses: Vec<f64>,
    /// The task on the validation set.
    pub validation: Option<Score>,
    /// Loss of the validation set's completions, which breaks ties.
    pub validation_loss: Option<f64>,
    /// The results on the test sets, if the test sets were to be scored.
    pub test: Option<TestResult>,
}

/// The measurements of a cell whose rate is chosen.
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
    pub fn directory(&self, plan: &ComparisonPlan, output: &Path) -> PathBuf {
        Self::directory_of_all(output).join(self.name(plan))
    }

    /// The directory that holds the directories of all cells.
    pub(crate) fn directory_of_all(output: &Path) -> PathBuf {
        output.join("cells")
    }

    /// The cell's name: `loreft/lr-0.004/seed-0`.
    pub fn name(&self, plan: &ComparisonPlan) -> String {
        match self.method {
            None => "base".to_owned(),
            Some(i) => {
                let label = slug(plan.config.method[i].label());
                format!("{label}/lr-{}/seed-{}", self.lr, self.seed)
            }
        }
    }

    /// Digest of everything that the cell's numbers depend on.
    pub(crate) fn identity(&self, plan: &ComparisonPlan) -> String {
        plan.digest(&self.facts(plan))
    }

    /// The facts that this cell's scores depend on, beyond the facts that all cells share.
    fn facts(&self, plan: &ComparisonPlan) -> Value {
        let entry = self.method.map(|i| &plan.config.method[i]);
        let method = entry.map(|entry| (&entry.method, &entry.options));
        let mut facts = json!({ "method": method, "lr": self.lr, "seed": self.seed });
        if let Some(factor) = entry.and_then(|entry| entry.rotation_lr_factor) {
            facts["rotation_lr_factor"] = json!(factor);
        }
        facts
    }

    /// Whether a result is this cell's. In version 1 its identity may leave out `share_weights = true`, the default then.
    fn is_of(&self, result: &CellResult, plan: &ComparisonPlan) -> bool {
        let mut facts = self.facts(plan);
        if plan.digest(&facts) == result.identity {
            return true;
        }
        let options = facts["method"].get_mut(1).and_then(Value::as_object_mut);
        let shared = options.and_then(|options| options.shift_remove(SHARE_WEIGHTS.name));
        plan.format_version == 1
            && shared == Some(Value::Bool(true))
            && plan.digest(&facts) == result.identity
    }

    /// The state of the cell, if it has been run under this plan.
    ///
    /// # Errors
    /// If its file cannot be read.
    pub fn result(&self, plan: &ComparisonPlan, output: &Path) -> Result<Option<CellResult>> {
        let path = self.directory(plan, output).join(CellResult::FILE_NAME);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(io_error("read", &path))?,
        };
        let result: Option<CellResult> = serde_json::from_slice(&text).ok();
        Ok(result.filter(|result| self.is_of(result, plan)))
    }

    /// Whether the cell is finished: it diverged, or it has its results, including the test's if it is tested.
    ///
    /// # Errors
    /// If its file cannot be read.
    pub fn is_done(&self, plan: &ComparisonPlan, output: &Path) -> Result<bool> {
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
        Ok(write_json_in_order(&directory.join(Self::FILE_NAME), self)?)
    }
}
