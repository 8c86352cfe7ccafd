use std::path::Path;

use reft_models::{read_text, toml_error};

use crate::{DasTask, EqualityTask, Error, Result, SearchDefaults};

/// A task file: texts for a language model, or a network that is trained for the purpose (a file with the table `[network]`).
#[derive(Debug, Clone, PartialEq)]
pub enum DasRecipe {
    /// Texts.
    Text(DasTask),
    /// A network that the task trains.
    Network(EqualityTask),
}

impl DasRecipe {
    /// Reads and checks a task.
    ///
    /// # Errors
    /// If the file cannot be read or is not a valid task; the error names the line or the field.
    pub fn open(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        let refuse = |error| toml_error(&text, path, &error);
        let table: toml::Table = toml::from_str(&text).map_err(refuse)?;
        if table.contains_key("network") {
            return Ok(Self::Network(toml::from_str(&text).map_err(refuse)?));
        }
        let task: DasTask = toml::from_str(&text).map_err(refuse)?;
        task.check().map_err(|reason| Error::File { path: path.to_owned(), reason })?;
        Ok(Self::Text(task))
    }

    /// The defaults of its search.
    pub fn search(&self) -> &SearchDefaults {
        match self {
            Self::Text(task) => &task.search,
            Self::Network(task) => &task.search,
        }
    }
}
