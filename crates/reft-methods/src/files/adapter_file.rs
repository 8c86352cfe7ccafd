//! The files of adapters: a configuration in JSON, and tensors with the identity of their base model in the metadata.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use reft_models::{
    BaseModel, ModelDescription, Result, TaskHead, TrainedText, Weights, json_error,
    load_safetensors, load_safetensors_metadata, read_json, save_safetensors, write_json,
};
use serde::Serialize;
use serde_json::{Value, json};
use tch::Tensor;

use crate::AdapterFiles;
use crate::files::head_file;

/// The metadata entry with the model's identity: PEFT ignores metadata, and its configuration has no field for it.
const BASE_MODEL: &str = "base_model";

/// The field of PEFT's configuration with the model's name.
const BASE_MODEL_NAME: &str = "base_model_name_or_path";

/// Names and shapes of the tensors that a file must hold.
pub(crate) type Shapes = Vec<(String, Vec<i64>)>;

/// Facts in an adapter's files beside its tensors.
#[derive(Clone, Copy, Default)]
pub(crate) struct Beside<'a> {
    /// The identity of the model that they belong to.
    pub(crate) base_model: Option<&'a BaseModel>,
    /// The framing of the texts that they were trained on.
    pub(crate) text: Option<&'a TrainedText>,
    /// The head of a task that was trained with them.
    pub(crate) head: Option<&'a TaskHead>,
    /// The prefix of modules' names in a model with the head.
    pub(crate) prefix: Option<&'a str>,
}

/// Writes an adapter directory's files.
pub(crate) fn write(
    files: AdapterFiles,
    dir: &Path,
    config: &impl Serialize,
    tensors: Vec<(String, Tensor)>,
    beside: Beside,
) -> Result<()> {
    let is_peft = matches!(files, AdapterFiles::Peft(_));
    let tensors = match beside.head.filter(|_| is_peft) {
        Some(head) => head_file::with_head(tensors, head, beside.prefix),
        None => tensors,
    };
    write_tensors(
        &dir.join(files.tensors()),
        &tensors,
        Beside { head: beside.head.filter(|_| is_peft), ..beside },
    )?;
    if let Some(head) = beside.head.filter(|_| !is_peft) {
        head_file::write(dir, head)?;
    }
    let path = dir.join(files.configuration());
    let mut config = serde_json::to_value(config).map_err(json_error(&path))?;
    if let (true, Some(base_model)) = (is_peft, beside.base_model) {
        config[BASE_MODEL_NAME] = json!(base_model.name);
    }
    if is_peft && beside.head.is_some() {
        head_file::say_in(&mut config);
    }
    write_json(&path, &config)
}

/// Writes tensors with the facts beside them in the metadata.
pub(crate) fn write_tensors(
    path: &Path,
    tensors: &[(String, Tensor)],
    Beside { base_model, text, head, .. }: Beside,
) -> Result<()> {
    let mut metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    if let Some(base_model) = base_model {
        let identity = serde_json::to_string(base_model).map_err(json_error(path))?;
        metadata.insert(BASE_MODEL.to_owned(), identity);
    }
    metadata.extend(text.map(|text| text.metadata(path)).transpose()?);
    metadata.extend(head.map(|head| head_file::metadata(head, path)).transpose()?.flatten());
    let detached: Vec<_> = tensors.iter().map(|(name, t)| (name.clone(), t.detach())).collect();
    save_safetensors(path, &detached, Some(metadata))
}

/// A text in the configuration of an adapter directory.
pub(crate) fn text_in(files: AdapterFiles, dir: &Path, field: &str) -> Result<Option<String>> {
    let config: Value = read_json(&dir.join(files.configuration()))?;
    Ok(config[field].as_str().map(str::to_owned))
}

/// The name of the base model in PEFT's configuration.
pub(crate) fn base_model_name(files: AdapterFiles, dir: &Path) -> Result<Option<String>> {
    text_in(files, dir, BASE_MODEL_NAME)
}

/// The identity of the base model of a directory's adapter, if its files say it.
pub(crate) fn base_model(files: AdapterFiles, dir: &Path) -> Result<Option<BaseModel>> {
    let path = dir.join(files.tensors());
    let metadata = load_safetensors_metadata(&path)?;
    let parse = |identity: &String| serde_json::from_str(identity);
    let base_model = metadata.get(BASE_MODEL).map(parse).transpose();
    base_model.map_err(json_error(&path))
}

/// Reads tensors and checks that they belong to the model and have the expected names; tensors of heads may be among them. In an adapter
/// trained on a model with a head, modules are named as in that model.
///
/// # Errors
/// [`Error::Adapter`] if the file names another model, [`Error::WeightMismatch`] with every missing, unexpected and misshapen
/// tensor.
pub(crate) fn read_tensors(
    files: AdapterFiles,
    dir: &Path,
    expected: &Shapes,
    is_head: &dyn Fn(&str) -> bool,
    model: &ModelDescription,
) -> Result<BTreeMap<String, Tensor>> {
    if let Some(base_model) = base_model(files, dir)? {
        base_model.check(model)?;
    }
    let path = dir.join(files.tensors());
    let Some(prefix) = model.prefix else { return read_exactly(&path, expected, is_head) };
    let (bare, whole) = (OF_PEFT.to_owned(), format!("{OF_PEFT}{prefix}."));
    let has_head = Weights::open_file(&path)?.names().any(|name| name.starts_with(&whole));
    if !has_head || expected.iter().any(|(name, _)| name.starts_with(&whole)) {
        return read_exactly(&path, expected, is_head);
    }
    let in_whole = |name: &str| name.replacen(&bare, &whole, 1);
    let own = expected.iter().map(|(name, shape)| (in_whole(name), shape.clone())).collect();
    let mut tensors = read_exactly(&path, &own, is_head)?;
    for (name, _) in expected {
        if let Some(tensor) = tensors.remove(&in_whole(name)) {
            tensors.insert(name.clone(), tensor);
        }
    }
    Ok(tensors)
}

/// PEFT's prefix of modules' names.
pub(crate) const OF_PEFT: &str = "base_model.model.";

/// Reads tensors and checks that they have the expected names; those for which `may_be` holds are optional.
///
/// # Errors
/// [`Error::WeightMismatch`] with every missing, unexpected and misshapen tensor.
pub(crate) fn read_exactly(
    path: &Path,
    expected: &Shapes,
    may_be: &dyn Fn(&str) -> bool,
) -> Result<BTreeMap<String, Tensor>> {
    let shapes = expected.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()));
    Weights::open_file(path)?.check(shapes, may_be)?;
    load_safetensors(path)
}
