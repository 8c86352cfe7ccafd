use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How the matrices of a frozen model are held on the device: as tensors, or in blocks of small integers that are expanded when they are
/// computed with.
///
/// Norms and biases are tensors always, and so is a matrix whose rows are no whole number of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightStorage {
    /// Tensors of the kind that is computed with.
    #[default]
    Dense,
    /// As the file holds them: the blocks Q8_0, Q4_0, Q4_1, Q4_K and Q6_K of a GGUF file stay packed, anything else becomes tensors.
    AsStored,
    /// Blocks of 32 eight-bit integers, 8.5 bits a number (GGUF's Q8_0), made when weights are read.
    Int8,
    /// Blocks of 32 four-bit integers, 4.5 bits a number (GGUF's Q4_0), made when weights are read; embeddings and head in eight bits.
    Int4,
}

const NAMES: [(&str, WeightStorage); 4] = [
    ("dense", WeightStorage::Dense),
    ("as-stored", WeightStorage::AsStored),
    ("int8", WeightStorage::Int8),
    ("int4", WeightStorage::Int4),
];

impl FromStr for WeightStorage {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = NAMES.iter().find(|(name, _)| *name == text);
        found
            .map(|(_, storage)| *storage)
            .ok_or_else(|| Error::UnknownStorage { found: text.to_owned() })
    }
}

impl fmt::Display for WeightStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, storage)| storage == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}
