//! Heads of tasks beside adapters: in PEFT's file where the method's is PEFT's, else in a file of their own.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use reft_models::{
    Error, Model, Result, TaskHead, Weights, json_error, load_safetensors,
    load_safetensors_metadata, save_safetensors,
};
use serde::Serialize;
use serde_json::{Value, json};
use tch::Tensor;

use crate::AdapterFiles;
use crate::files::adapter_file::OF_PEFT;

/// The file of a head beside an adapter that is not PEFT's: tensors as transformers names them.
pub(crate) const HEAD_FILE: &str = "head.safetensors";

/// The metadata entry with the names of the classes: PEFT has no place for them.
const CLASSES: &str = "classes";

/// PEFT's prefix of modules' names where the adapter is virtual tokens, which wrap no modules.
const OF_PROMPTS: &str = "base_model.";

/// PEFT's names of a head's modules that are stored whole.
const MODULES: [&str; 2] = ["classifier", "score"];

/// The head of a task beside an adapter, described without its model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeadSummary {
    /// Number of its outputs: classes, or 1 for a number or a reward.
    pub outputs: i64,
    /// The names of the classes; empty without names, or for a number.
    pub classes: Vec<String>,
    /// Number of its parameters.
    pub parameters: i64,
}

/// The metadata entry for a head's class names; `None` without names.
pub(crate) fn metadata(head: &TaskHead, file: &Path) -> Result<Option<(String, String)>> {
    if head.names().is_empty() {
        return Ok(None);
    }
    let names = serde_json::to_string(head.names()).map_err(json_error(file))?;
    Ok(Some((CLASSES.to_owned(), names)))
}

/// Writes the file of a head.
pub(crate) fn write(dir: &Path, head: &TaskHead) -> Result<()> {
    let path = dir.join(HEAD_FILE);
    let mut all = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    all.extend(metadata(head, &path)?);
    let tensors: Vec<_> =
        head.tensors().into_iter().map(|(name, own)| (name, own.detach())).collect();
    save_safetensors(&path, &tensors, Some(all))
}

/// The tensors of a PEFT adapter and of a head, as PEFT names them in a model with the head: module names begin with `prefix`.
pub(crate) fn with_head(
    tensors: Vec<(String, Tensor)>,
    head: &TaskHead,
    prefix: Option<&str>,
) -> Vec<(String, Tensor)> {
    let of_modules = tensors.iter().all(|(name, _)| name.starts_with(OF_PEFT));
    let renamed = |name: String| match (name.strip_prefix(OF_PEFT), prefix) {
        (Some(module), Some(prefix)) if !module.starts_with(&format!("{prefix}.")) => {
            format!("{OF_PEFT}{prefix}.{module}")
        }
        _ => name,
    };
    let before = if of_modules { OF_PEFT } else { OF_PROMPTS };
    let own = tensors.into_iter().map(|(name, tensor)| (renamed(name), tensor));
    own.chain(head.tensors().into_iter().map(|(name, own)| (format!("{before}{name}"), own)))
        .collect()
}

/// Declares a head in a PEFT configuration.
pub(crate) fn say_in(config: &mut Value) {
    config["task_type"] = json!("SEQ_CLS");
    config["modules_to_save"] = json!(MODULES);
}

/// The tensors of the head beside the adapter in a directory, and their file; empty if there is no head.
pub(crate) fn tensors(
    files: AdapterFiles,
    dir: &Path,
) -> Result<(PathBuf, BTreeMap<String, Tensor>)> {
    if !matches!(files, AdapterFiles::Peft(_)) {
        let path = dir.join(HEAD_FILE);
        let tensors = if path.is_file() { load_safetensors(&path)? } else { BTreeMap::new() };
        return Ok((path, tensors));
    }
    let path = dir.join(files.tensors());
    let of_head = |(name, tensor): (String, Tensor)| {
        let bare = name.strip_prefix(OF_PEFT).or_else(|| name.strip_prefix(OF_PROMPTS))?;
        let is_head = ["classifier.", "pre_classifier.", "score."]
            .iter()
            .any(|module| bare.starts_with(module));
        is_head.then(|| (bare.to_owned(), tensor))
    };
    let tensors = load_safetensors(&path)?;
    Ok((path, tensors.into_iter().filter_map(of_head).collect()))
}

/// The class names of a head's outputs, from the metadata of its file; empty without names.
fn classes(file: &Path) -> Result<Vec<String>> {
    let metadata = load_safetensors_metadata(file)?;
    let names = metadata.get(CLASSES).map(|names| serde_json::from_str(names)).transpose();
    Ok(names.map_err(json_error(file))?.unwrap_or_default())
}

/// Describes the head beside the adapter in a directory, without its model; `None` if there is none.
pub(crate) fn summary(files: AdapterFiles, dir: &Path) -> Result<Option<HeadSummary>> {
    let (path, own) = tensors(files, dir)?;
    if own.is_empty() {
        return Ok(None);
    }
    // the last module of each family's head
    let last = ["classifier.out_proj.weight", "classifier.weight", "score.weight"];
    let outputs = last.iter().find_map(|name| own.get(*name)?.size().first().copied());
    let outputs = outputs.ok_or_else(|| Error::Adapter {
        reason: format!("the head in {} has none of {}", path.display(), last.join(", ")),
    })?;
    let parameters = own.values().map(|tensor| tensor.numel() as i64).sum();
    Ok(Some(HeadSummary { outputs, classes: classes(&path)?, parameters }))
}

/// Reads the head beside the adapter in a directory; `None` if there is none.
pub(crate) fn read(
    files: AdapterFiles,
    dir: &Path,
    model: &dyn Model,
    weights: &Weights,
) -> Result<Option<TaskHead>> {
    let (path, own) = tensors(files, dir)?;
    if own.is_empty() {
        return Ok(None);
    }
    Ok(Some(TaskHead::of(model, weights, own, classes(&path)?)?))
}
