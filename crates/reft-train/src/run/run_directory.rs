use std::path::{Path, PathBuf};

use reft_models::io_error;
use serde_json::{Map, Value};

use crate::run::checkpoint::{CHECKPOINTS, Checkpoint};
use crate::run::metrics::MetricsFile;
use crate::{Error, Result};

/// Where a run keeps what it writes: checkpoints, `metrics.jsonl`, and at its end the adapter.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    pub(crate) path: PathBuf,
    pub(crate) metrics: MetricsFile,
    /// Step of the newest checkpoint.
    pub(crate) saved: Option<usize>,
    /// What the run's numbers depend on.
    pub(crate) identity: Map<String, Value>,
}

impl RunDirectory {
    /// Checks that no run has left something in a directory.
    ///
    /// # Errors
    /// [`Error::RunExists`].
    pub(crate) fn check_unused(path: &Path) -> Result<()> {
        match [CHECKPOINTS, MetricsFile::NAME].into_iter().find(|name| path.join(name).exists()) {
            Some(found) => Err(Error::RunExists { path: path.to_owned(), found }),
            None => Ok(()),
        }
    }

    /// The directory, made if it is not there, of a run that goes on after its newest checkpoint, of step `saved`, or begins anew.
    pub(crate) fn open(
        path: &Path,
        saved: Option<usize>,
        identity: Map<String, Value>,
    ) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(io_error("create", path))?;
        let metrics = MetricsFile::open_after(path, saved.unwrap_or(0))?;
        Ok(Self { path: path.to_owned(), metrics, saved, identity })
    }

    /// Writes a checkpoint; returns its directory.
    pub(crate) fn save(&mut self, checkpoint: &Checkpoint) -> Result<PathBuf> {
        self.metrics.sync()?;
        let path = checkpoint.save(&self.path)?;
        self.saved = Some(checkpoint.state.step);
        Ok(path)
    }
}
