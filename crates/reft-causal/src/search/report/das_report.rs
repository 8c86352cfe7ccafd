use std::path::Path;

use reft_models::{read_json, write_json_in_order, write_text};
use serde::{Deserialize, Serialize};

use crate::{CellFile, DasCell, DasOptions, Error, MeasuredShare, Result};

/// The results of a search: its `das.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DasReport {
    /// Version of the file.
    pub format_version: u32,
    /// The task.
    pub name: String,
    /// The question of the task.
    pub description: String,
    /// The variable that was looked for.
    pub variable: String,
    /// The model.
    pub model: String,
    /// Digest of the model's weights; `None` for a network that the search trains, and in files of versions that did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// The command that began it.
    pub command: String,
    /// The places that were searched, and how.
    pub options: DasOptions,
    /// The first counterfactual in words.
    pub example: String,
    /// Number of answers that the model chooses between.
    pub n_answers: usize,
    /// Bases that the model answers right by itself.
    pub base_accuracy: Option<MeasuredShare>,
    /// Held-out counterfactuals that are answered as expected although nothing is swapped.
    pub no_intervention: Option<MeasuredShare>,
    /// Held-out counterfactuals that are also training counterfactuals, word for word; `None` for a task without texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeated: Option<usize>,
    /// The templates, with the model's answers without any swap; empty for a task without templates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<TemplateShares>,
    /// The first bases that the model answers wrong without a swap.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong_bases: Vec<WrongAnswer>,
    /// The first held-out counterfactuals that fail at the best place of each rank.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<PlaceFailures>,
    /// Wall time of the runs that all cells share.
    pub run_seconds: f64,
    /// Wall time of the call that finished it.
    pub seconds: Option<f64>,
    /// The results: a row for each place, token and rank.
    pub rows: Vec<DasRow>,
}

/// The model's answers to the texts of a template without any swap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TemplateShares {
    /// The template.
    pub template: String,
    /// Bases that are answered right.
    pub base_accuracy: MeasuredShare,
    /// Held-out counterfactuals that are answered as expected although nothing is swapped.
    pub no_intervention: MeasuredShare,
}

/// A prompt that is not answered as expected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WrongAnswer {
    /// The base.
    pub base: String,
    /// The source; `None` without a swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The answer that the causal model gives.
    pub expected: String,
    /// The model's answer.
    pub given: String,
}

/// The failures at a place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlaceFailures {
    /// Where, in words.
    pub site: String,
    /// The token, by name.
    pub position: String,
    /// Dimension of the subspace.
    pub rank: i64,
    /// How many fail.
    pub failed: usize,
    /// The first of them.
    pub first: Vec<WrongAnswer>,
}

/// The result at one place, token and rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DasRow {
    /// Where, in words.
    pub site: String,
    /// The layer.
    pub layer: usize,
    /// The component of the block.
    pub component: String,
    /// The token, by name.
    pub position: String,
    /// Dimension of the subspace, or of the rotation whose coordinates a learned gate chooses from.
    pub rank: i64,
    /// Number of swapped dimensions: the rank, or the learned number.
    pub dimensions: i64,
    /// The trained subspace on held-out counterfactuals.
    #[serde(flatten)]
    pub found: MeasuredShare,
    /// The subspace before it was trained, if one was.
    pub start: Option<MeasuredShare>,
    /// A random subspace of the same dimension.
    pub random_rotation: Option<MeasuredShare>,
    /// As many neurons.
    pub neurons: Option<MeasuredShare>,
    /// The same search in a model that was never trained.
    pub untrained_model: Option<MeasuredShare>,
    /// The trained subspace on the held-out counterfactuals of each template; empty in results of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_template: Vec<MeasuredShare>,
    /// Counterfactuals that fail, with the model's answers.
    #[serde(skip)]
    pub(crate) failed: Option<Vec<(usize, i64)>>,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// Its share of the wall time of all cells that were trained and measured together.
    pub seconds: f64,
}

impl DasReport {
    /// Version of the file of a new search.
    ///
    /// In version 2 a cell's digest holds the model's name but not its weights. The report holds the digest of the weights, and a search whose
    /// weights have changed is refused.
    pub const FORMAT_VERSION: u32 = 3;

    /// Name of the file.
    pub const FILE_NAME: &str = "das.json";

    /// The report of a search without results, from the task's name, question and variable, and the search's model and command.
    pub(crate) fn empty(
        options: DasOptions,
        [name, description, variable]: [&str; 3],
        (model, command): (String, String),
    ) -> Self {
        Self {
            format_version: Self::FORMAT_VERSION,
            name: name.to_owned(),
            description: description.to_owned(),
            variable: variable.to_owned(),
            model,
            command,
            options,
            ..Self::default()
        }
    }

    /// The report of a search that continues in a directory, with the format version in which it was begun.
    ///
    /// # Errors
    /// [`Error::File`] if it was begun in version 2 and the model's weights have changed.
    pub(crate) fn going_on_in(self, output: &Path) -> Result<Self> {
        let path = output.join(Self::FILE_NAME);
        // an unreadable report is overwritten
        let known: Option<Self> = read_json(&path).ok();
        let Some(known) = known.filter(|known| known.format_version == 2) else { return Ok(self) };
        if known.weights.is_some() && known.weights != self.weights && known.model == self.model {
            let reason = "the weights of the model have changed since the search was begun; search them in another directory";
            return Err(Error::File { path, reason: reason.to_owned() });
        }
        Ok(Self { format_version: known.format_version, ..self })
    }

    /// Writes `das.json`, `das.md` and `das.html`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, output: &Path) -> Result<()> {
        write_json_in_order(&output.join(Self::FILE_NAME), self)?;
        write_text(&output.join("das.md"), &self.markdown())?;
        Ok(write_text(&output.join("das.html"), &self.html())?)
    }

    /// The row of a place, token and rank.
    pub fn at(&self, component: &str, layer: usize, position: &str, rank: i64) -> Option<&DasRow> {
        self.rows.iter().find(|row| row.key() == (component, layer, position, rank))
    }

    /// The row with the highest IIA at a rank; the first of equal rows.
    pub fn best(&self, rank: i64) -> Option<&DasRow> {
        let rows = self.rows.iter().filter(|row| row.rank == rank);
        rows.reduce(|best, row| if row.found.hits > best.found.hits { row } else { best })
    }

    pub(crate) fn add(&mut self, cell: &DasCell, file: &CellFile) {
        let component = cell.of_layer.to_string();
        let DasCell { layer, rank, ref position, .. } = *cell;
        if cell.untrained_model {
            let key = (component.as_str(), layer, position.as_str(), rank);
            if let Some(row) = self.rows.iter_mut().find(|row| row.key() == key) {
                row.untrained_model = Some(file.found);
            }
            return;
        }
        self.rows.push(DasRow {
            site: format!("layer {layer} {component}"),
            layer,
            component,
            position: position.clone(),
            rank,
            found: file.found,
            dimensions: file.dimensions,
            start: file.start,
            random_rotation: file.random_rotation,
            neurons: file.neurons,
            untrained_model: None,
            by_template: Vec::new(),
            failed: file.failed.clone(),
            loss: file.loss,
            seconds: file.seconds,
        });
    }
}

impl DasRow {
    /// The fields that identify the row.
    fn key(&self) -> (&str, usize, &str, i64) {
        (&self.component, self.layer, &self.position, self.rank)
    }
}
