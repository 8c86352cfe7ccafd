use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use reft_models::{io_error, write_text};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::run::checkpoint::{CHECKPOINTS, Checkpoint};
use crate::{Error, Result};

/// The directory of a run's files: checkpoints, `metrics.jsonl`, and at its end the adapter.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    pub(crate) path: PathBuf,
    /// A row per step and per validation, written when it happens.
    metrics: File,
    /// Step of the newest checkpoint.
    pub(crate) saved: Option<usize>,
    /// Everything that the run's results depend on.
    pub(crate) identity: Map<String, Value>,
}

const METRICS: &str = "metrics.jsonl";

impl RunDirectory {
    /// Checks that a directory holds no files of a run.
    ///
    /// # Errors
    /// [`Error::RunExists`].
    pub(crate) fn check_unused(path: &Path) -> Result<()> {
        match [CHECKPOINTS, METRICS].into_iter().find(|name| path.join(name).exists()) {
            Some(found) => Err(Error::RunExists { path: path.to_owned(), found }),
            None => Ok(()),
        }
    }

    /// Opens or creates the directory of a run that resumes after its checkpoint of step `saved`, or starts. Metrics of later steps, and a
    /// last row cut short, are dropped.
    pub(crate) fn open(
        path: &Path,
        saved: Option<usize>,
        identity: Map<String, Value>,
    ) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(io_error("create", path))?;
        let file = path.join(METRICS);
        let kept = match std::fs::read(&file) {
            Ok(bytes) => rows_up_to(saved.unwrap_or(0), &String::from_utf8_lossy(&bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(io_error("read", &file)(error).into()),
        };
        write_text(&file, &kept)?;
        let metrics =
            OpenOptions::new().append(true).open(&file).map_err(io_error("open", &file))?;
        Ok(Self { path: path.to_owned(), metrics, saved, identity })
    }

    /// Appends a row to the metrics.
    pub(crate) fn write(&mut self, row: &impl Serialize) -> Result<()> {
        let mut line =
            serde_json::to_string(row).expect("invariant: rows hold numbers under names");
        line.push('\n');
        self.metrics_are_there()?;
        let written = self.metrics.write_all(line.as_bytes());
        Ok(written.map_err(io_error("write", &self.path.join(METRICS)))?)
    }

    /// Fails if the directory is gone: writes to open files would be lost, and a checkpoint would belong to a run without options.
    fn metrics_are_there(&self) -> Result<()> {
        let file = self.path.join(METRICS);
        std::fs::metadata(&file).map_err(io_error("write", &file))?;
        Ok(())
    }

    /// Writes a checkpoint after all rows are synced to the disk; returns its directory.
    pub(crate) fn save(&mut self, checkpoint: &Checkpoint) -> Result<PathBuf> {
        self.metrics_are_there()?;
        self.metrics.sync_data().map_err(io_error("write", &self.path.join(METRICS)))?;
        let path = checkpoint.save(&self.path)?;
        self.saved = Some(checkpoint.state.step);
        Ok(path)
    }
}

/// The whole rows of `text` that belong to steps up to `step`. A run that has not begun has none.
fn rows_up_to(step: usize, text: &str) -> String {
    let belongs = |line: &&str| {
        let row: Value = serde_json::from_str(line).unwrap_or_default();
        let of = row["step"].as_u64();
        line.ends_with('\n') && of.is_some_and(|of| step > 0 && of <= step as u64)
    };
    text.split_inclusive('\n').filter(belongs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StepStats, ValidationStats};
    use std::collections::BTreeMap;

    fn stats(step: usize) -> StepStats {
        StepStats {
            step,
            epoch: 0.5,
            loss: 1.25,
            terms: BTreeMap::new(),
            lr: 1e-3,
            grad_norm: 2.0,
            tokens: 10,
            target_tokens: 4,
            seconds: 0.5,
            memory: None,
        }
    }

    #[test]
    fn going_on_drops_later_rows_and_one_cut_short()
    -> std::result::Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let validation = ValidationStats {
            step: 2,
            validation_loss: 1.0,
            measured: BTreeMap::from([("f1".to_owned(), 0.5)]),
            is_best: true,
            target_tokens: 3,
            seconds: 0.1,
        };
        let open = |saved| RunDirectory::open(directory.path(), saved, Map::new());
        let mut metrics = open(None)?;
        metrics.write(&stats(1))?;
        metrics.write(&stats(2))?;
        metrics.write(&validation)?;
        metrics.write(&stats(3))?;
        metrics.metrics.write_all(b"{\"step\":2,\"lo")?;
        drop(metrics);

        let mut metrics = open(Some(2))?;
        metrics.write(&stats(3))?;
        let text = std::fs::read_to_string(directory.path().join(METRICS))?;
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows.len(), 4);
        assert_eq!(serde_json::from_str::<StepStats>(rows[1])?, stats(2));
        assert_eq!(serde_json::from_str::<ValidationStats>(rows[2])?, validation);
        assert_eq!(serde_json::from_str::<StepStats>(rows[3])?, stats(3));

        open(None)?;
        assert_eq!(std::fs::read(directory.path().join(METRICS))?, b"");
        Ok(())
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_with_the_path() -> std::io::Result<()> {
        let metrics = OpenOptions::new().append(true).open("/dev/full")?;
        let path = PathBuf::from("run");
        let mut run = RunDirectory { path, metrics, saved: None, identity: Map::new() };
        let written = run.write(&stats(1));
        assert!(
            matches!(&written, Err(Error::Model(reft_models::Error::Io { action: "write", path, .. })) if path.ends_with("run/metrics.jsonl")),
            "{written:?}"
        );
        Ok(())
    }
}
