//! Test data and result files.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::Result;
use crate::runs::oracle;

/// Lengths of the three rows of the reference batch, and of their prompts.
pub const LENGTHS: [usize; 3] = [14, 12, 9];
pub const PROMPT_LENGTHS: [usize; 3] = [9, 8, 6];

/// The rows of an integer tensor.
pub fn integers(path: &Path, name: &str) -> Result<Vec<Vec<i64>>> {
    let bytes = fs::read(path)?;
    let view_of = SafeTensors::deserialize(&bytes)?;
    let view = view_of.tensor(name)?;
    let number = |b: &[u8]| <[u8; 8]>::try_from(b).map(i64::from_le_bytes);
    let values: Vec<i64> =
        view.data().chunks_exact(8).map(number).collect::<std::result::Result<_, _>>()?;
    let columns = view.shape().last().copied().unwrap_or(1);
    Ok(values.chunks(columns).map(<[i64]>::to_vec).collect())
}

/// The reference batch without its padding: token ids and labels of each row.
pub fn batch() -> Result<Vec<(Vec<i64>, Vec<i64>)>> {
    let file = oracle("tiny_io.safetensors");
    let (ids, labels) = (integers(&file, "input_ids")?, integers(&file, "labels")?);
    let rows = ids.into_iter().zip(labels).zip(LENGTHS);
    Ok(rows.map(|((ids, labels), n)| (ids[..n].to_vec(), labels[..n].to_vec())).collect())
}

/// The reference batch as `reft logits` takes it.
pub fn logits_input(dir: &Path) -> Result<PathBuf> {
    let (ids, labels): (Vec<_>, Vec<_>) = batch()?.into_iter().unzip();
    let input = json!({"input_ids": ids, "labels": labels, "prompt_lengths": PROMPT_LENGTHS});
    let path = dir.join("batch.json");
    fs::write(&path, input.to_string())?;
    Ok(path)
}

/// The reference batch as `reft train` takes it.
pub fn training_rows(dir: &Path) -> Result<PathBuf> {
    let rows = batch()?.into_iter().zip(PROMPT_LENGTHS).map(|((ids, labels), prompt_length)| {
        json!({"input_ids": ids, "labels": labels, "prompt_length": prompt_length})
    });
    write_rows(&dir.join("data.jsonl"), rows)
}

/// Some rows of different lengths over the vocabulary of the tiny model.
pub fn many_rows(dir: &Path, n: usize) -> Result<PathBuf> {
    let rows = (0..n).map(|i| {
        let ids: Vec<usize> = (0..6 + i % 5).map(|t| (7 * i + 13 * t + i * t) % 128).collect();
        json!({"input_ids": ids, "prompt_length": 3 + i % 2})
    });
    write_rows(&dir.join("many.jsonl"), rows)
}

fn write_rows(path: &Path, rows: impl Iterator<Item = Value>) -> Result<PathBuf> {
    let lines: Vec<String> = rows.map(|row| row.to_string() + "\n").collect();
    fs::write(path, lines.concat())?;
    Ok(path.to_owned())
}

/// The rows of a run's `metrics.jsonl` that belong to steps: the loss as it is written, by step.
pub fn losses(run: &Path) -> Result<Vec<(u64, String)>> {
    let mut losses = Vec::new();
    for line in fs::read_to_string(run.join("metrics.jsonl"))?.lines() {
        let row: Value = serde_json::from_str(line)?;
        if let (Some(step), Some(loss)) = (row["step"].as_u64(), row.get("loss")) {
            losses.push((step, loss.to_string()));
        }
    }
    Ok(losses)
}

/// A copy of the tiny model, to be changed.
pub fn model_copy(dir: &Path) -> Result<PathBuf> {
    let copy = dir.join("model");
    fs::create_dir(&copy)?;
    for name in ["config.json", "model.safetensors"] {
        fs::copy(oracle("tiny_llama").join(name), copy.join(name))?;
    }
    Ok(copy)
}

/// Every path below a directory, to see whether something was left behind.
pub fn listing(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(listing(&path)?);
        }
        found.push(path);
    }
    found.sort();
    Ok(found)
}
