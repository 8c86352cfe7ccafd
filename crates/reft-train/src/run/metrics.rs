use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use reft_models::{atomic_write, io_error};
use serde::{Deserialize, Serialize};

use crate::Result;

/// A row of `metrics.jsonl` for each optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepStats {
    /// The step, counted from 1.
    pub step: usize,
    /// Epochs done after it, with a fraction.
    pub epoch: f64,
    /// The objective's loss before the step's update; of next tokens the mean of `−log p(target)` over the step's target tokens.
    pub loss: f64,
    /// The terms that the loss is the sum of, by name, if it has several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub terms: BTreeMap<String, f64>,
    /// Learning rate of the update.
    pub lr: f64,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model, padding not among them.
    pub tokens: usize,
    /// Tokens that count in the loss.
    pub target_tokens: i64,
    /// Wall time of the step.
    pub seconds: f64,
}

/// A row of `metrics.jsonl` for each validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ValidationStats {
    /// Steps taken before it; 0: the adapter as it starts.
    pub step: usize,
    /// The objective's loss on the examples held out.
    pub validation_loss: f64,
    /// Number of their target tokens.
    pub target_tokens: i64,
    /// Wall time of the validation.
    pub seconds: f64,
}

/// `metrics.jsonl`: a row per step and per validation, written when it happens.
#[derive(Debug)]
pub(crate) struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    pub(crate) const NAME: &str = "metrics.jsonl";

    /// Opens the file in `directory` to go on after `step`: rows of later steps, and a last row cut short, are dropped.
    pub(crate) fn open_after(directory: &Path, step: usize) -> Result<Self> {
        let path = directory.join(Self::NAME);
        let kept = match std::fs::read(&path) {
            Ok(bytes) => rows_up_to(step, &String::from_utf8_lossy(&bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(io_error("read", &path)(error).into()),
        };
        atomic_write::<reft_models::Error>(&path, |temporary| {
            std::fs::write(temporary, kept).map_err(io_error("write", &path))
        })?;
        let file = OpenOptions::new().append(true).open(&path).map_err(io_error("open", &path))?;
        Ok(Self { path, file })
    }

    /// Appends a row.
    pub(crate) fn write(&mut self, row: &impl Serialize) -> Result<()> {
        let mut line =
            serde_json::to_string(row).expect("invariant: rows hold numbers under names");
        line.push('\n');
        Ok(self.file.write_all(line.as_bytes()).map_err(io_error("write", &self.path))?)
    }

    /// Makes sure that every row is on the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        Ok(self.file.sync_data().map_err(io_error("write", &self.path))?)
    }
}

/// The whole rows of `text` that belong to steps up to `step`. A run that has not begun has none.
fn rows_up_to(step: usize, text: &str) -> String {
    #[derive(Deserialize)]
    struct AnyRow {
        step: usize,
    }
    let belongs = |line: &&str| {
        let row = serde_json::from_str::<AnyRow>(line);
        line.ends_with('\n') && row.is_ok_and(|row| step > 0 && row.step <= step)
    };
    text.split_inclusive('\n').filter(belongs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

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
        }
    }

    #[test]
    fn going_on_drops_later_rows_and_one_cut_short()
    -> std::result::Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let validation =
            ValidationStats { step: 2, validation_loss: 1.0, target_tokens: 3, seconds: 0.1 };
        let mut metrics = MetricsFile::open_after(directory.path(), 0)?;
        metrics.write(&stats(1))?;
        metrics.write(&stats(2))?;
        metrics.write(&validation)?;
        metrics.write(&stats(3))?;
        metrics.file.write_all(b"{\"step\":2,\"lo")?;
        drop(metrics);

        let mut metrics = MetricsFile::open_after(directory.path(), 2)?;
        metrics.write(&stats(3))?;
        let text = std::fs::read_to_string(directory.path().join(MetricsFile::NAME))?;
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows.len(), 4);
        assert_eq!(serde_json::from_str::<StepStats>(rows[1])?, stats(2));
        assert_eq!(serde_json::from_str::<ValidationStats>(rows[2])?, validation);
        assert_eq!(serde_json::from_str::<StepStats>(rows[3])?, stats(3));

        MetricsFile::open_after(directory.path(), 0)?;
        assert_eq!(std::fs::read(directory.path().join(MetricsFile::NAME))?, b"");
        Ok(())
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_with_the_path() -> std::io::Result<()> {
        let path = PathBuf::from("/dev/full");
        let file = OpenOptions::new().append(true).open(&path)?;
        let written = MetricsFile { path: path.clone(), file }.write(&stats(1));
        assert!(
            matches!(&written, Err(Error::Model(reft_models::Error::Io { action: "write", path: found, .. })) if *found == path),
            "{written:?}"
        );
        Ok(())
    }
}
