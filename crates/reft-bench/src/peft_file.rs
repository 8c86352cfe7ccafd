//! Adapter directories as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use reft_models::{
    BaseModel, DecoderConfig, Error, Result, atomic_write, load_safetensors,
    load_safetensors_metadata, save_safetensors,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tch::Tensor;

/// Name of the configuration in an adapter directory.
pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the tensors' file.
pub(crate) const MODEL_FILE: &str = "adapter_model.safetensors";
/// Where in the tensors' file the model's identity stands: PEFT does not look at the metadata, and its configuration has no place for it.
const BASE_MODEL: &str = "base_model";

/// Names and shapes of the tensors that a file must hold.
pub(crate) type Shapes = Vec<(String, Vec<i64>)>;

/// Reads a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_str(&text).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// Writes a JSON file with its fields in alphabetical order, as PEFT does.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let broken = |source| Error::Json { path: path.to_owned(), source };
    let mut value = serde_json::to_value(value).map_err(broken)?;
    value.sort_all_objects();
    let json = serde_json::to_string_pretty(&value).map_err(broken)?;
    atomic_write(path, |temporary| {
        std::fs::write(temporary, json + "\n").map_err(|source| Error::Io {
            action: "write",
            path: path.to_owned(),
            source,
        })
    })
}

/// Reads `adapter_config.json`.
pub(crate) fn read_config<T: DeserializeOwned>(dir: &Path) -> Result<T> {
    read_json(&dir.join(CONFIG_FILE))
}

/// `peft_type` of an adapter directory: "LORA", "IA3", ….
pub(crate) fn peft_type(dir: &Path) -> Result<String> {
    let config: Value = read_config(dir)?;
    config["peft_type"].as_str().map(str::to_owned).ok_or_else(|| Error::Adapter {
        reason: format!("{} says no peft_type", dir.join(CONFIG_FILE).display()),
    })
}

/// Writes an adapter directory's two files.
pub(crate) fn write(
    dir: &Path,
    config: &impl Serialize,
    tensors: &[(String, Tensor)],
    base_model: &BaseModel,
) -> Result<()> {
    write_tensors(&dir.join(MODEL_FILE), tensors, base_model)?;
    write_json(&dir.join(CONFIG_FILE), config)
}

/// Writes tensors with the identity of the model that they belong to.
pub(crate) fn write_tensors(
    path: &Path,
    tensors: &[(String, Tensor)],
    base_model: &BaseModel,
) -> Result<()> {
    let identity = serde_json::to_string(base_model)
        .map_err(|source| Error::Json { path: path.to_owned(), source })?;
    let metadata = [("format".to_owned(), "pt".to_owned()), (BASE_MODEL.to_owned(), identity)];
    let detached: Vec<_> = tensors.iter().map(|(name, t)| (name.clone(), t.detach())).collect();
    save_safetensors(path, &detached, Some(HashMap::from(metadata)))
}

/// The model that a tensors' file belongs to, if it says so.
pub(crate) fn base_model(path: &Path) -> Result<Option<BaseModel>> {
    let metadata = load_safetensors_metadata(path)?;
    let parse = |identity: &String| serde_json::from_str(identity);
    let base_model = metadata.get(BASE_MODEL).map(parse).transpose();
    base_model.map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// Reads the tensors of an adapter directory: exactly those expected.
pub(crate) fn read(
    dir: &Path,
    expected: &Shapes,
    config: &DecoderConfig,
) -> Result<BTreeMap<String, Tensor>> {
    read_tensors(&dir.join(MODEL_FILE), expected, config)
}

/// Reads tensors and checks that they are exactly those expected, and that they belong to the model.
///
/// # Errors
/// [`Error::Adapter`] if the file names another model, [`Error::WeightMismatch`] with every missing, unexpected and misshapen
/// tensor.
pub(crate) fn read_tensors(
    path: &Path,
    expected: &Shapes,
    config: &DecoderConfig,
) -> Result<BTreeMap<String, Tensor>> {
    let tensors = load_safetensors(path)?;
    if let Some(base_model) = base_model(path)? {
        base_model.check(config)?;
    }
    let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
    for (name, shape) in expected {
        match tensors.get(name).map(Tensor::size) {
            None => missing.push(name.clone()),
            Some(found) if found == *shape => {}
            Some(found) => misshapen.push((name.clone(), found, shape.clone())),
        }
    }
    let is_expected = |name: &str| expected.iter().any(|(other, _)| other == name);
    let unexpected: Vec<String> =
        tensors.keys().filter(|name| !is_expected(name)).cloned().collect();
    if missing.is_empty() && unexpected.is_empty() && misshapen.is_empty() {
        return Ok(tensors);
    }
    Err(Error::WeightMismatch { path: path.to_owned(), missing, unexpected, misshapen })
}
