//! GGUF files: llama.cpp's format, seen as a Hugging Face checkpoint.
//!
//! Tensors get their Hugging Face names and row order, and are dequantised or kept in their blocks; [`Gguf::config`],
//! [`Gguf::tokenizer_json`] and their siblings give the contents of the other files of a Hugging Face directory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use serde::Deserialize;
use serde_json::Value as Json;
use tch::{Device, Kind, Tensor};

use crate::gguf::architecture::{ARCHITECTURES, Architecture};
use crate::gguf::header::{Header, TensorInfo};
use crate::gguf::split::read_parts;
use crate::weights::quantised::{BlockFormat, Quantised};
use crate::{Error, Result, io_error};

/// A GGUF file of a decoder, or all parts of a split one.
#[derive(Debug)]
pub struct Gguf {
    parts: Vec<(PathBuf, Header)>, // the first has the metadata
    pub(crate) architecture: Architecture,
    tensors: BTreeMap<String, Stored>, // under their Hugging Face names
    /// Factors of rope scaling, by their names in the file: they belong to the configuration, not to the model's tensors.
    pub(crate) rope_factors: BTreeMap<String, Stored>,
}

/// A tensor as the file stores it.
#[derive(Debug)]
pub(crate) struct Stored {
    name: String,
    part: usize,
    info: TensorInfo,
    /// Heads whose rows llama.cpp has interleaved.
    interleaved_heads: Option<i64>,
    /// Whether it holds `1 + w`.
    is_one_more: bool,
}

impl Gguf {
    /// Reads the header of `path`. For a model in several files, `path` is the first.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::Format`] if it is not a whole GGUF file, has an unsupported architecture or
    /// unknown tensors, or if parts are missing.
    pub fn open(path: &Path) -> Result<Self> {
        let parts = read_parts(path)?;
        let broken = |reason| Error::Format { path: path.to_owned(), reason };
        let Some(Json::String(name)) = parts[0].1.metadata.get("general.architecture") else {
            return Err(broken("it names no general.architecture".to_owned()));
        };
        let architecture =
            ARCHITECTURES.into_iter().find(|known| known.name == name).ok_or_else(|| {
                let known = ARCHITECTURES.map(|known| known.name).join(", ");
                broken(format!("its architecture is {name:?}; {known} can be read"))
            })?;
        Self { parts, architecture, tensors: BTreeMap::new(), rope_factors: BTreeMap::new() }
            .with_tensors()
    }

    /// Whether a path has the extension `.gguf`.
    pub(crate) fn is_named(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
    }

    /// The file's path, or its first part's.
    pub fn path(&self) -> &Path {
        &self.parts[0].0
    }

    /// The metadata.
    pub(crate) fn metadata(&self) -> impl Iterator<Item = (&String, &Json)> {
        self.parts[0].1.metadata.iter()
    }

    /// The Hugging Face names and shapes of the tensors, in order of name.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[i64])> {
        self.tensors.iter().map(|(name, stored)| (name.as_str(), &*stored.info.shape))
    }

    /// Dequantises the rows `first..first + n` of a matrix, or a whole vector as one row, to f32 on the CPU.
    ///
    /// Rows are in the file's order: see [`Self::row_order`].
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] if it is not there, [`Error::Format`] if its data cannot be read.
    pub(crate) fn load_rows(&self, name: &str, first: i64, n: i64) -> Result<Tensor> {
        let stored = self.stored(name)?;
        let rows = self.dequantise(stored, first, n)?;
        Ok(if stored.is_one_more { rows.f_sub_scalar(1.0)? } else { rows })
    }

    /// A matrix in the blocks of the file; `None` if their type is not kept packed.
    ///
    /// # Errors
    /// As [`Self::load_rows`].
    pub(crate) fn load_blocks(
        &self,
        name: &str,
        shape: (i64, i64),
        options: (Kind, Device),
    ) -> Result<Option<Quantised>> {
        let stored = self.stored(name)?;
        let Some(format) = BlockFormat::of(stored.info.dtype) else { return Ok(None) };
        let blocks = shape.1 / format.block();
        let parts = |first, n| {
            let bytes = Tensor::f_from_slice(&self.row_bytes(stored, first, n)?)?;
            Ok(format.unpack(&bytes.f_view([n, blocks, -1])?))
        };
        Quantised::gather(format, shape, options, parts).map(Some)
    }

    /// The index that brings the file's rows into the order of the Hugging Face checkpoint; `None` if the orders are equal.
    ///
    /// llama.cpp interleaves the two rotary halves of each head in the rows of q and k.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] if it is not there.
    pub(crate) fn row_order(&self, name: &str) -> Result<Option<Tensor>> {
        let Stored { info, interleaved_heads, .. } = self.stored(name)?;
        let Some(n_heads) = *interleaved_heads else { return Ok(None) };
        let rows = Tensor::f_arange(info.shape[0], (Kind::Int64, Device::Cpu))?;
        Ok(Some(rows.f_view([n_heads, -1, 2])?.f_transpose(1, 2)?.f_flatten(0, 2)?))
    }

    /// Dequantises rows of a tensor, in the file's order: `[n, columns]`.
    pub(crate) fn dequantise(&self, stored: &Stored, first: i64, n: i64) -> Result<Tensor> {
        let Stored { name, info, .. } = stored;
        let bytes = self.row_bytes(stored, first, n)?;
        let plain = match info.dtype {
            GgmlDType::F32 => Some(Kind::Float),
            GgmlDType::F16 => Some(Kind::Half),
            GgmlDType::BF16 => Some(Kind::BFloat16),
            _ => None,
        };
        if let Some(kind) = plain {
            let values = Tensor::f_from_slice(&bytes)?.f_view_dtype(kind)?;
            return Ok(values.f_to_kind(Kind::Float)?.f_view([n, -1])?);
        }
        if let Some(format) = BlockFormat::of(info.dtype) {
            let blocks =
                Tensor::f_from_slice(&bytes)?.f_view([n, -1, info.dtype.type_size() as i64])?;
            return Ok(format.expand(&format.unpack(&blocks)));
        }
        let elements = bytes.len() / info.dtype.type_size() * info.dtype.block_size();
        let cpu = candle_core::Device::Cpu;
        let rows: Vec<f32> = qtensor_from_ggml(info.dtype, &bytes, vec![elements], &cpu)
            .and_then(|rows| rows.dequantize(&cpu)?.to_vec1())
            .map_err(|failed| self.broken(format!("tensor {name}: {failed}")))?;
        Ok(Tensor::f_from_slice(&rows)?.f_view([n, -1])?)
    }

    /// The bytes of the rows `first..first + n` of a matrix, or of a vector.
    fn row_bytes(&self, Stored { part, info, .. }: &Stored, first: i64, n: i64) -> Result<Vec<u8>> {
        let ((path, header), row) = (&self.parts[*part], info.row_bytes());
        let mut bytes = vec![0; n as usize * row];
        let read = |bytes: &mut [u8]| {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(header.start(info) + (first as usize * row) as u64))?;
            file.read_exact(bytes)
        };
        read(&mut bytes).map_err(io_error("read", path))?;
        Ok(bytes)
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        let unknown = || Error::UnknownTensor { path: self.path().into(), name: name.to_owned() };
        self.tensors.get(name).ok_or_else(unknown)
    }

    /// The type of each tensor that the decoder uses, by its name in the format.
    pub(crate) fn dtypes(&self) -> impl Iterator<Item = String> {
        self.tensors.values().map(|stored| format!("{:?}", stored.info.dtype))
    }

    /// Whether there is a tensor of this Hugging Face name.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// An error about this file.
    pub(crate) fn broken(&self, reason: String) -> Error {
        Error::Format { path: self.path().to_owned(), reason }
    }

    /// A value of the metadata, if the key is there; `expected` names its type.
    pub(crate) fn optional<'a, T: Deserialize<'a>>(
        &'a self,
        key: &str,
        expected: &str,
    ) -> Result<Option<T>> {
        let Some(value) = self.parts[0].1.metadata.get(key) else { return Ok(None) };
        T::deserialize(value).map(Some).map_err(|_| {
            let found = match value {
                Json::Array(values) => format!("an array of {}", values.len()),
                scalar => scalar.to_string(),
            };
            self.broken(format!("metadata {key} is {found}, expected {expected}"))
        })
    }

    /// A required value of the metadata.
    pub(crate) fn required<'a, T: Deserialize<'a>>(
        &'a self,
        key: &str,
        expected: &str,
    ) -> Result<T> {
        let missing = || self.broken(format!("metadata {key} is missing"));
        self.optional(key, expected)?.ok_or_else(missing)
    }

    /// A required positive integer under `{architecture}.{key}`.
    pub(crate) fn size(&self, key: &str) -> Result<i64> {
        let key = self.key(key);
        match self.required(&key, "an integer")? {
            size if size > 0 => Ok(size),
            size => Err(self.broken(format!("metadata {key} is {size}, expected at least 1"))),
        }
    }

    /// `{architecture}.{key}`.
    pub(crate) fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name)
    }

    /// Gives the headers' tensors their Hugging Face names.
    fn with_tensors(mut self) -> Result<Self> {
        let n_heads = self.per_layer("attention.head_count")?;
        let n_kv_heads = self.key_value_heads()?;
        let mut unknown = Vec::new();
        for part in 0..self.parts.len() {
            for (name, info) in std::mem::take(&mut self.parts[part].1.tensors) {
                let interleaved_heads = match name.rsplit('.').nth(1) {
                    Some("attn_q") if self.architecture.interleaves => Some(n_heads),
                    Some("attn_k") if self.architecture.interleaves => Some(n_kv_heads),
                    _ => None,
                };
                let is_one_more = self.architecture.adds_one && name.ends_with("norm.weight");
                let stored = Stored { name, part, info, interleaved_heads, is_one_more };
                if stored.name.starts_with("rope_f") {
                    self.rope_factors.insert(stored.name.clone(), stored);
                    continue;
                }
                let Some(name) = self.architecture.hugging_face_name(&stored.name) else {
                    unknown.push(stored.name);
                    continue;
                };
                if let Some(twice) = self.tensors.insert(name, stored) {
                    let name = twice.name;
                    return Err(self.broken(format!("two of its parts hold a tensor {name}")));
                }
            }
        }
        if unknown.is_empty() {
            return Ok(self);
        }
        unknown.sort_unstable();
        let more = unknown.len().saturating_sub(UNKNOWN_SHOWN);
        unknown.truncate(UNKNOWN_SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let names = unknown.join(", ");
        Err(self.broken(format!(
            "it holds tensors that no decoder of its architecture has: {names}{more}"
        )))
    }

    /// Number of key and value heads; by default the number of query heads.
    pub(crate) fn key_value_heads(&self) -> Result<i64> {
        let own = "attention.head_count_kv";
        let is_given = self.parts[0].1.metadata.contains_key(&self.key(own));
        self.per_layer(if is_given { own } else { "attention.head_count" })
    }

    /// [`Self::size`], or a list with the same size for each layer.
    pub(crate) fn per_layer(&self, key: &str) -> Result<i64> {
        let full = self.key(key);
        let Some(Json::Array(sizes)) = self.parts[0].1.metadata.get(&full) else {
            return self.size(key);
        };
        match sizes.first().and_then(Json::as_i64).filter(|size| *size > 0) {
            Some(size) if sizes.iter().all(|other| *other == size) => Ok(size),
            _ => Err(self.broken(format!(
                "metadata {full} is a list of sizes that differ from layer to layer, expected one size of at least 1; only layers of one shape are computed"
            ))),
        }
    }
}

/// Names that an error lists.
const UNKNOWN_SHOWN: usize = 5;

/// llama.cpp's tensors for the factors of llama3's rope scaling, and for those of LongRoPE within and past the original context.
pub(crate) const ROPE_FREQUENCIES: &str = "rope_freqs.weight";
pub(crate) const ROPE_SHORT: &str = "rope_factors_short.weight";
pub(crate) const ROPE_LONG: &str = "rope_factors_long.weight";
