//! Adapter directories of the methods that PEFT does not have: `baseline_config.json` and `baseline_model.safetensors`.

use std::collections::BTreeMap;
use std::path::Path;

use reft_models::{BaseModel, Component, DecoderConfig, Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tch::Tensor;

use crate::peft_file::{self, Shapes};

/// Name of the configuration in an adapter directory.
pub(crate) const CONFIG_FILE: &str = "baseline_config.json";
/// Name of the tensors' file.
pub(crate) const MODEL_FILE: &str = "baseline_model.safetensors";
/// The version of the format that is written and read.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// `method` of an adapter directory.
pub(crate) fn method(dir: &Path) -> Result<String> {
    let path = dir.join(CONFIG_FILE);
    let config: Value = peft_file::read_json(&path)?;
    config["method"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::Adapter { reason: format!("{} names no method", path.display()) })
}

/// Reads `baseline_config.json`.
pub(crate) fn read_config<T: DeserializeOwned>(dir: &Path) -> Result<T> {
    peft_file::read_json(&dir.join(CONFIG_FILE))
}

/// Reads exactly the tensors expected.
pub(crate) fn read(
    dir: &Path,
    expected: &Shapes,
    config: &DecoderConfig,
) -> Result<BTreeMap<String, Tensor>> {
    peft_file::read_tensors(&dir.join(MODEL_FILE), expected, config)
}

/// Writes an adapter directory's two files.
pub(crate) fn write(
    dir: &Path,
    config: &impl Serialize,
    tensors: &[(String, Tensor)],
    base_model: &BaseModel,
) -> Result<()> {
    peft_file::write_tensors(&dir.join(MODEL_FILE), tensors, base_model)?;
    peft_file::write_json(&dir.join(CONFIG_FILE), config)
}

/// Checks what every such configuration holds.
pub(crate) fn check(
    format_version: u32,
    layers: &[usize],
    components: &[Component],
    accepted: &[Component],
    base_model: &BaseModel,
    config: &DecoderConfig,
) -> Result<()> {
    let refuse = |reason: String| Err(Error::Adapter { reason });
    if format_version != FORMAT_VERSION {
        return refuse(format!(
            "format_version is {format_version}, this program reads {FORMAT_VERSION}"
        ));
    }
    base_model.check(config)?;
    let n = config.num_hidden_layers;
    if let Some(layer) = layers.iter().find(|layer| **layer >= n) {
        return refuse(format!(
            "layer {layer} is out of range, the model has {n} layers, counted from 0"
        ));
    }
    if layers.is_empty() || layers.windows(2).any(|pair| pair[0] >= pair[1]) {
        return refuse(format!(
            "layers are {layers:?}; name each layer once, in ascending order, and at least one"
        ));
    }
    let names = || accepted.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if let Some(component) = components.iter().find(|component| !accepted.contains(component)) {
        return refuse(format!("component is {component}, the method takes {}", names()));
    }
    if components.is_empty() || components.windows(2).any(|pair| pair[0] >= pair[1]) {
        return refuse(format!("name each component once, in this order: {}", names()));
    }
    Ok(())
}

/// Components by name, in a JSON list.
pub(crate) mod component_names {
    use reft_models::Component;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        components: &[Component],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(components.iter().map(|component| component.name()))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Component>, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        names.iter().map(|name| name.parse().map_err(serde::de::Error::custom)).collect()
    }
}
