use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::compare::cell::{Cell, CellResult, write_json};
use crate::compare::config::CompareConfig;
use crate::compare::facts::{DataFacts, hex};
use crate::compare::machine::Machine;
use crate::error::{Error, Result, read_text};
use crate::tasks::TaskConfig;

/// Everything that a comparison is, with every file read and every default filled in: its `plan.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Version of the files of a comparison.
    pub format_version: u32,
    /// The command that began it.
    pub command: String,
    /// The configuration in force.
    pub config: CompareConfig,
    /// The task.
    pub task: TaskConfig,
    /// How the rows of the training file are read, if otherwise.
    pub train_task: Option<TaskConfig>,
    /// The data.
    pub data: DataFacts,
    /// Numbers of the base model.
    pub base_parameters: i64,
    /// Where it runs.
    pub machine: Machine,
}

/// The learning rate that a method goes on with.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Its index in the grid.
    pub index: usize,
    /// The rate.
    pub lr: f64,
}

impl Plan {
    /// Name of the file.
    pub const FILE_NAME: &str = "plan.json";

    /// Version of the files that this program writes.
    pub const FORMAT_VERSION: u32 = 1;

    /// Reads the plan of a comparison.
    ///
    /// # Errors
    /// If there is none, or it is not what this program writes.
    pub fn read(output: &Path) -> Result<Self> {
        let path: PathBuf = output.join(Self::FILE_NAME);
        let plan: Self = serde_json::from_str(&read_text(&path)?)
            .map_err(|source| reft_models::Error::Json { path: path.clone(), source })?;
        if plan.format_version != Self::FORMAT_VERSION {
            let reason = format!(
                "format_version is {}, this program reads {}",
                plan.format_version,
                Self::FORMAT_VERSION
            );
            return Err(Error::File { path, reason });
        }
        Ok(plan)
    }

    /// Writes the plan.
    pub(crate) fn write(&self, output: &Path) -> Result<()> {
        write_json(&output.join(Self::FILE_NAME), self)
    }

    /// The cells that a method's rate is chosen by: every rate with the first seed.
    pub fn tuning(&self, method: usize) -> Vec<Cell> {
        let seed = self.config.seeds[0];
        let cell = |&lr| Cell { method: Some(method), lr, seed, test: false };
        self.config.method[method].lr.iter().map(cell).collect()
    }

    /// The cells of the chosen rate: every seed, tested.
    pub fn chosen(&self, method: usize, lr: f64) -> Vec<Cell> {
        let cell = |&seed| Cell { method: Some(method), lr, seed, test: true };
        self.config.seeds.iter().map(cell).collect()
    }

    /// SHA-256 of what every cell depends on and of what one does.
    pub(crate) fn digest(&self, of_the_cell: &Value) -> String {
        let data: Vec<&str> = [&self.data.train, &self.data.validation]
            .into_iter()
            .chain(&self.data.test)
            .chain(&self.data.neutral)
            .map(|part| part.digest.as_str())
            .collect();
        let all = json!({
            "format_version": self.format_version,
            "model": self.config.model,
            "kind": self.config.kind,
            "task": self.task,
            "train_task": self.train_task,
            "data": data,
            "train": self.config.train,
            "device": self.machine.device,
            "threads": self.machine.threads,
            "cell": of_the_cell,
        });
        hex(&Sha256::digest(all.to_string()))
    }
}

/// The rate with the best validation score; of equal ones the lower validation loss, then the lower rate, decides. Diverged runs are
/// never chosen.
pub fn choose_rate(results: &[CellResult], higher_is_better: bool) -> Option<Choice> {
    let candidate = |(index, result): (usize, &CellResult)| {
        let validation = result.validation.as_ref()?;
        let value = if higher_is_better { -validation.value } else { validation.value };
        let loss = result.validation_loss.unwrap_or(f64::INFINITY);
        result.diverged.is_none().then_some((value, loss, result.lr, index))
    };
    let order = |a: &(f64, f64, f64, usize), b: &(f64, f64, f64, usize)| {
        a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.total_cmp(&b.2))
    };
    let (_, _, lr, index) = results.iter().enumerate().filter_map(candidate).min_by(order)?;
    Some(Choice { index, lr })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::{Metric, Score};

    fn result(lr: f64, value: f64, loss: f64) -> CellResult {
        CellResult {
            identity: String::new(),
            lr,
            seed: 0,
            diverged: None,
            steps: 1,
            trainable_parameters: 1,
            adapter_bytes: 1,
            train_seconds: 1.0,
            train_tokens: 1,
            peak_memory_bytes: None,
            losses: vec![1.0],
            validation: Some(Score {
                metric: Metric::Accuracy,
                value,
                perplexity: None,
                questions: 1,
                seconds: 1.0,
                answers: Vec::new(),
            }),
            validation_loss: Some(loss),
            test: None,
        }
    }

    #[test]
    fn the_best_validation_score_chooses_and_the_loss_breaks_ties() {
        let results = [result(1e-3, 0.5, 0.1), result(2e-3, 0.7, 0.9), result(3e-3, 0.7, 0.8)];
        let chosen = |results: &[CellResult], up| choose_rate(results, up).map(|choice| choice.lr);
        assert_eq!(chosen(&results, true), Some(3e-3));
        assert_eq!(chosen(&results, false), Some(1e-3));
        let mut diverged = results.clone();
        diverged[2].diverged = Some("loss is NaN".to_owned());
        assert_eq!(chosen(&diverged, true), Some(2e-3));
        assert_eq!(chosen(&[], true), None);
    }
}
