use std::path::{Path, PathBuf};

use reft_models::io_error;
use serde::{Deserialize, Serialize};

use crate::{Accuracy, ComponentOrHead, DasAlignment, Result};

/// One search: a place, a token and a rank, in the model or in an untrained one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DasCell {
    /// The layer.
    pub layer: usize,
    /// The component or the head.
    pub of_layer: ComponentOrHead,
    /// The token, by name.
    pub position: String,
    /// The kind of swap.
    pub alignment: DasAlignment,
    /// Dimension of the subspace, or of the rotation.
    pub rank: i64,
    /// Whether the model's weights are random: a control.
    pub untrained_model: bool,
}

/// A share of counterfactuals with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeasuredShare {
    /// The share: interchange intervention accuracy.
    pub iia: f64,
    /// Lower end of Wilson's interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Counterfactuals answered as the causal model expects.
    pub hits: usize,
    /// Counterfactuals.
    pub total: usize,
}

impl From<Accuracy> for MeasuredShare {
    fn from(accuracy: Accuracy) -> Self {
        let (low, high) = accuracy.interval();
        let Accuracy { hits, total } = accuracy;
        Self { iia: accuracy.share(), low, high, hits, total }
    }
}

/// The state of a cell: its `cell.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CellFile {
    /// Digest of everything that the numbers depend on.
    pub(crate) identity: String,
    /// The trained subspace on held-out counterfactuals.
    pub(crate) found: MeasuredShare,
    /// Number of swapped dimensions: the rank, or the learned number.
    pub(crate) dimensions: i64,
    /// The subspace before training; `None` in an untrained model, as the next two fields.
    pub(crate) start: Option<MeasuredShare>,
    /// A random subspace of the same dimension.
    pub(crate) random_rotation: Option<MeasuredShare>,
    /// As many neurons.
    pub(crate) neurons: Option<MeasuredShare>,
    /// Held-out counterfactuals with an unexpected answer: their numbers and the answers given. `None` in files of older versions.
    #[serde(default)]
    pub(crate) failed: Option<Vec<(usize, i64)>>,
    /// Loss of the last step.
    pub(crate) loss: Option<f64>,
    /// Its share of the wall time of all cells that were trained and measured together.
    pub(crate) seconds: f64,
}

impl DasCell {
    /// Its name: `block_output-12/subject/rank-1` or `head_3-12/last/boundless`, after `untrained-model/` for that control.
    pub fn name(&self) -> String {
        let Self { layer, of_layer, position, alignment, rank, untrained_model } = self;
        let control = if *untrained_model { "untrained-model/" } else { "" };
        format!("{control}{of_layer}-{layer}/{position}/{}", alignment.cell_name(*rank))
    }

    /// Its directory below the search's.
    pub fn directory(&self, output: &Path) -> PathBuf {
        output.join("cells").join(self.name())
    }
}

impl CellFile {
    pub(crate) const FILE_NAME: &str = "cell.json";

    /// The state of a cell, if it was found with this identity.
    pub(crate) fn read(directory: &Path, identity: &str) -> Result<Option<Self>> {
        let path = directory.join(Self::FILE_NAME);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read", &path)(error).into()),
        };
        let file: Option<Self> = serde_json::from_slice(&text).ok();
        Ok(file.filter(|file| file.identity == identity))
    }
}
