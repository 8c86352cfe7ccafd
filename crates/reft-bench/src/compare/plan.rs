use std::path::Path;

use reft_models::{read_json, write_json_in_order};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::compare::facts::{DataFacts, hex};
use crate::{Cell, CellResult, CompareConfig, Error, Machine, MethodEntry, Result, TaskConfig};

/// The whole description of a comparison, with every file read and every default filled in: its `plan.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComparisonPlan {
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
    /// Number of the base model's parameters.
    pub base_parameters: i64,
    /// Digest of the model's weights; `None` in plans of versions that did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Where it runs.
    pub machine: Machine,
}

impl ComparisonPlan {
    /// Name of the file.
    pub const FILE_NAME: &str = "plan.json";

    /// Version of the files of a new comparison.
    ///
    /// A comparison is continued in the version that it was begun in. In version 1 ReFT methods share weights by default. Up to version 2 a
    /// cell's identity holds the model's name but not its weights, so the plan holds their digest and a comparison whose weights have changed is
    /// refused.
    pub const FORMAT_VERSION: u32 = 3;

    /// Reads the plan of a comparison.
    ///
    /// # Errors
    /// If there is no plan, or another program wrote the file.
    pub fn read(output: &Path) -> Result<Self> {
        let path = output.join(Self::FILE_NAME);
        version_in(&path)?;
        Ok(read_json(&path)?)
    }

    /// Writes the plan.
    pub(crate) fn write(&self, output: &Path) -> Result<()> {
        Ok(write_json_in_order(&output.join(Self::FILE_NAME), self)?)
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

    /// Number of cells, the base model among them.
    pub(crate) fn cells(&self) -> usize {
        let of_method = |method: &MethodEntry| method.lr.len() + self.config.seeds.len() - 1;
        1 + self.config.method.iter().map(of_method).sum::<usize>()
    }

    /// SHA-256 of the facts that all cells depend on, and of one cell's own.
    pub(crate) fn digest(&self, of_the_cell: &Value) -> String {
        let data: Vec<&str> = [&self.data.train, &self.data.validation]
            .into_iter()
            .chain(&self.data.test)
            .chain(&self.data.neutral)
            .map(|part| part.digest.as_str())
            .collect();
        let name = Some(self.config.model.clone());
        let mut all = json!({
            "format_version": self.format_version,
            "model": if self.format_version > 2 { &self.weights } else { &name },
            "kind": self.config.kind,
            "task": self.task,
            "train_task": self.train_task,
            "data": data,
            "train": self.config.train,
            "device": self.machine.device,
            "threads": self.machine.threads,
            "cell": of_the_cell,
        });
        if self.config.objective.kl_weight.is_some() {
            let replay = self.data.replay.as_ref().map(|part| &part.digest);
            all["objective"] = json!([self.config.objective, replay]);
        }
        hex(&Sha256::digest(all.to_string()))
    }
}

/// Checks that the comparison was begun with these weights, if the plan holds their digest.
///
/// # Errors
/// [`Error::File`] if the weights differ.
pub(crate) fn check_weights(
    output: &Path,
    known: &ComparisonPlan,
    now: &ComparisonPlan,
) -> Result<()> {
    if known.weights.is_none()
        || known.weights == now.weights
        || known.config.model != now.config.model
    {
        return Ok(());
    }
    let reason = "the weights of the model have changed since the comparison was begun; compare them in another directory";
    Err(Error::File { path: output.join(ComparisonPlan::FILE_NAME), reason: reason.to_owned() })
}

/// The version of a plan; `None` if the file is not there.
///
/// # Errors
/// If it cannot be read, or is of a later version.
pub(crate) fn version_in(path: &Path) -> Result<Option<u32>> {
    #[derive(Deserialize)]
    struct Versioned {
        format_version: u32,
    }
    if !path.exists() {
        return Ok(None);
    }
    let Versioned { format_version: found } = read_json(path)?;
    if !(1..=ComparisonPlan::FORMAT_VERSION).contains(&found) {
        let last = ComparisonPlan::FORMAT_VERSION;
        let reason = format!("format_version is {found}, this program reads 1 to {last}");
        return Err(Error::File { path: path.to_owned(), reason });
    }
    Ok(Some(found))
}

/// The rate with the best validation score. Ties go to the lower validation loss, then to the lower rate. Diverged runs are never chosen.
pub fn choose_rate(results: &[CellResult], higher_is_better: bool) -> Option<f64> {
    let candidate = |result: &CellResult| {
        let validation = result.validation.as_ref()?;
        let value = if higher_is_better { -validation.value } else { validation.value };
        let loss = result.validation_loss.unwrap_or(f64::INFINITY);
        result.diverged.is_none().then_some((value, loss, result.lr))
    };
    let order = |a: &(f64, f64, f64), b: &(f64, f64, f64)| {
        a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.total_cmp(&b.2))
    };
    Some(results.iter().filter_map(candidate).min_by(order)?.2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::score::Score;
    use reft_train::Metric;

    fn result(lr: f64, value: f64, loss: f64) -> CellResult {
        CellResult {
            lr,
            validation: Some(Score {
                metric: Metric::Accuracy,
                value,
                perplexity: None,
                margin: None,
                questions: 1,
                seconds: 1.0,
                answers: Vec::new(),
            }),
            validation_loss: Some(loss),
            ..CellResult::default()
        }
    }

    #[test]
    fn the_best_validation_score_chooses_and_the_loss_breaks_ties() {
        let results = [result(1e-3, 0.5, 0.1), result(2e-3, 0.7, 0.9), result(3e-3, 0.7, 0.8)];
        assert_eq!(choose_rate(&results, true), Some(3e-3));
        assert_eq!(choose_rate(&results, false), Some(1e-3));
        let mut diverged = results.clone();
        diverged[2].diverged = Some("loss is NaN".to_owned());
        assert_eq!(choose_rate(&diverged, true), Some(2e-3));
        assert_eq!(choose_rate(&[], true), None);
    }
}
