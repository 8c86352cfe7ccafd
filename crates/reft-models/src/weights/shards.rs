//! The files that hold a model's weights in a Hugging Face directory: one, or several with an index.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tch::Tensor;

use crate::{Error, Result, read_json, save_safetensors, write_json_in_order};

/// The name of a single weights file.
pub(crate) const WHOLE: &str = "model.safetensors";

/// The name of the index of several weights files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
    #[serde(default)]
    metadata: Map<String, Value>,
}

/// Reads which shard holds each tensor from `model.safetensors.index.json`. Shards are plain file names.
pub(crate) fn read_shard_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let ShardIndex { weight_map, .. } = read_json(path)?;
    for shard in weight_map.values() {
        if Path::new(shard).file_name() != Some(shard.as_ref()) {
            let reason =
                format!("shard {shard:?} is not a plain file name; shards lie beside the index");
            return Err(Error::Format { path: path.to_owned(), reason });
        }
    }
    Ok(weight_map)
}

/// Writes the weights of a model, of any shape, into its directory: `model.safetensors`, or, if they exceed `largest` bytes, shards of at most that size
/// (a tensor is never split) and `model.safetensors.index.json`. `facts` are stored in the metadata, for [`weights_facts`].
///
/// # Errors
/// Errors of [`save_safetensors`].
pub fn save_weights(
    dir: &Path,
    tensors: &[(String, Tensor)],
    facts: &[(&str, String)],
    largest: u64,
) -> Result<()> {
    let size = |tensor: &Tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
    let mut shards: Vec<&[(String, Tensor)]> = Vec::new();
    let (mut start, mut filled, mut total) = (0, 0, 0);
    for (i, (_, tensor)) in tensors.iter().enumerate() {
        if i > start && filled + size(tensor) > largest {
            shards.push(&tensors[start..i]);
            (start, filled) = (i, 0);
        }
        filled += size(tensor);
        total += size(tensor);
    }
    shards.push(&tensors[start..]);
    let mut metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    metadata.extend(facts.iter().map(|(name, fact)| ((*name).to_owned(), fact.clone())));
    if let [whole] = &shards[..] {
        return save_safetensors(&dir.join(WHOLE), whole, Some(metadata));
    }
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        save_safetensors(&dir.join(&name), shard, Some(metadata.clone()))?;
        weight_map.extend(shard.iter().map(|(tensor, _)| (tensor, name.clone())));
    }
    let mut of_index = Map::from_iter([("total_size".to_owned(), json!(total))]);
    of_index.extend(facts.iter().map(|(name, fact)| ((*name).to_owned(), json!(fact))));
    write_json_in_order(&dir.join(INDEX), &json!({"metadata": of_index, "weight_map": weight_map}))
}

/// The metadata of a model's weights, in one file or several.
///
/// # Errors
/// [`Error::Io`], [`Error::Json`] or [`Error::Safetensors`] if there are none, or they are broken.
pub fn weights_facts(dir: &Path) -> Result<BTreeMap<String, String>> {
    let index = dir.join(INDEX);
    if dir.join(WHOLE).is_file() || !index.is_file() {
        return crate::load_safetensors_metadata(&dir.join(WHOLE));
    }
    let ShardIndex { metadata, .. } = read_json(&index)?;
    let text = |(name, fact): (String, Value)| Some((name, fact.as_str()?.to_owned()));
    Ok(metadata.into_iter().filter_map(text).collect())
}
