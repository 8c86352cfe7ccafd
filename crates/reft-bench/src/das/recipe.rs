use std::path::Path;

use serde::Deserialize;

use crate::das::equality::EqualityTask;
use crate::das::task::DasTask;
use crate::error::{Result, read_text};
use crate::tasks::toml_error;

/// A task file: texts for a language model, or a network that is trained for the purpose (a file with the table `[network]`).
#[derive(Debug, Clone, PartialEq)]
pub enum DasRecipe {
    /// Texts.
    Text(DasTask),
    /// A network of its own.
    Network(EqualityTask),
}

/// What a search takes unless the command says otherwise: the table `[search]` of a task.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SearchDefaults {
    /// Dimensions.
    pub rank: Option<Vec<i64>>,
    /// Counterfactuals to train on.
    pub train_pairs: Option<usize>,
    /// Counterfactuals held out.
    pub test_pairs: Option<usize>,
    /// Optimizer steps.
    pub steps: Option<usize>,
    /// Counterfactuals of a step.
    pub batch_size: Option<usize>,
    /// Learning rate.
    pub lr: Option<f64>,
}

impl DasRecipe {
    /// Reads and checks a task.
    ///
    /// # Errors
    /// If it cannot be read, or is none, with its line or field.
    pub fn open(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        let refuse = |error| toml_error(&text, path, &error);
        let table: toml::Table = toml::from_str(&text).map_err(refuse)?;
        if table.contains_key("network") {
            return Ok(Self::Network(toml::from_str(&text).map_err(refuse)?));
        }
        Ok(Self::Text(DasTask::parse(&text, path)?))
    }

    /// What a search takes unless the command says otherwise.
    pub fn search(&self) -> &SearchDefaults {
        match self {
            Self::Text(task) => &task.search,
            Self::Network(task) => &task.search,
        }
    }
}
