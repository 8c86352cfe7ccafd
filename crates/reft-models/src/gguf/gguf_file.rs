//! GGUF files: llama.cpp's format, seen as a Hugging Face checkpoint.
//!
//! Tensors get their Hugging Face names and row order, and are dequantised or kept in their blocks; [`Gguf::config`],
//! [`Gguf::tokenizer_json`] and their siblings give what the other files of a Hugging Face directory would hold.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use serde::Deserialize;
use serde_json::Value as Json;
use tch::{Device, Kind, Tensor};

use crate::gguf::header::{Header, TensorInfo};
use crate::weights::quantised::{BlockFormat, Quantised};
use crate::{Error, Result, io_error};

/// A GGUF file of the Llama family.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    header: Header,
    pub(crate) architecture: &'static str,
    tensors: BTreeMap<String, Stored>, // under their Hugging Face names
    /// The factors of llama3's rope scaling: part of the configuration, no tensor of the model.
    pub(crate) rope_frequencies: Option<TensorInfo>,
}

/// The architectures whose tensors are a Llama-family decoder's: names in the file, and prefixes of metadata keys.
const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// A tensor of the model as the file stores it.
#[derive(Debug)]
struct Stored {
    name: String,
    info: TensorInfo,
    /// Heads whose rows llama.cpp has interleaved.
    interleaved_heads: Option<i64>,
}

impl Gguf {
    /// Reads the header of `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::Format`] if it is not a whole GGUF file, or not of a Llama-family
    /// architecture (`llama`, `qwen2`, `qwen3`), or holds tensors that such a model does not have.
    pub fn open(path: &Path) -> Result<Self> {
        let broken = |reason| Error::Format { path: path.to_owned(), reason };
        let file = File::open(path).map_err(io_error("read", path))?;
        let len = file.metadata().map_err(io_error("read", path))?.len();
        let header = Header::read(file, len).map_err(broken)?;
        let Some(Json::String(name)) = header.metadata.get("general.architecture") else {
            return Err(broken("it names no general.architecture".to_owned()));
        };
        let architecture =
            ARCHITECTURES.into_iter().find(|known| known == name).ok_or_else(|| {
                broken(format!("its architecture is {name:?}; llama, qwen2 and qwen3 can be read"))
            })?;
        let (path, tensors) = (path.to_owned(), BTreeMap::new());
        Self { path, header, architecture, tensors, rope_frequencies: None }.with_tensors()
    }

    /// Whether a file has the name of one.
    pub(crate) fn is_named(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The Hugging Face names and shapes of the tensors, in order of name.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[i64])> {
        self.tensors.iter().map(|(name, stored)| (name.as_str(), &*stored.info.shape))
    }

    /// Dequantises the rows `first..first + n` of a matrix, or all of a vector as the one row that it is, to f32 on the CPU.
    ///
    /// Rows are in the file's order: see [`Self::row_order`].
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] if it is not there, [`Error::Format`] if its data cannot be read.
    pub(crate) fn load_rows(&self, name: &str, first: i64, n: i64) -> Result<Tensor> {
        let Stored { name, info, .. } = self.stored(name)?;
        Ok(Tensor::f_from_slice(&self.dequantise(name, info, first, n)?)?.f_view([n, -1])?)
    }

    /// A matrix in the blocks that the file holds it in; none if they are of a type that is not kept packed.
    ///
    /// # Errors
    /// As [`Self::load_rows`].
    pub(crate) fn load_blocks(
        &self,
        name: &str,
        shape: (i64, i64),
        options: (Kind, Device),
    ) -> Result<Option<Quantised>> {
        let info = &self.stored(name)?.info;
        let Some(format) = BlockFormat::of(info.dtype) else { return Ok(None) };
        let blocks = shape.1 / format.block();
        let parts = |first, n| {
            let bytes = Tensor::f_from_slice(&self.row_bytes(info, first, n)?)?;
            Ok(format.unpack(&bytes.f_view([n, blocks, -1])?))
        };
        Quantised::gather(format, shape, options, parts).map(Some)
    }

    /// The order in which the file's rows are those of the Hugging Face checkpoint, where it is another one.
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

    /// Dequantises rows of the tensor that the file calls `name`, in the file's order.
    pub(crate) fn dequantise(
        &self,
        name: &str,
        info: &TensorInfo,
        first: i64,
        n: i64,
    ) -> Result<Vec<f32>> {
        let bytes = self.row_bytes(info, first, n)?;
        let elements = bytes.len() / info.dtype.type_size() * info.dtype.block_size();
        let cpu = candle_core::Device::Cpu;
        qtensor_from_ggml(info.dtype, &bytes, vec![elements], &cpu)
            .and_then(|rows| rows.dequantize(&cpu)?.to_vec1())
            .map_err(|failed| self.broken(format!("tensor {name}: {failed}")))
    }

    /// What the file holds of the rows `first..first + n` of a matrix, or of a vector.
    fn row_bytes(&self, info: &TensorInfo, first: i64, n: i64) -> Result<Vec<u8>> {
        let row = info.row_bytes();
        let mut bytes = vec![0; n as usize * row];
        let read = |bytes: &mut [u8]| {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(self.header.start(info) + (first as usize * row) as u64))?;
            file.read_exact(bytes)
        };
        read(&mut bytes).map_err(io_error("read", &self.path))?;
        Ok(bytes)
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        let unknown = || Error::UnknownTensor { path: self.path.clone(), name: name.to_owned() };
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
        Error::Format { path: self.path.clone(), reason }
    }

    /// A value of the metadata, if the key is there; `expected` says what it should be.
    pub(crate) fn optional<'a, T: Deserialize<'a>>(
        &'a self,
        key: &str,
        expected: &str,
    ) -> Result<Option<T>> {
        let Some(value) = self.header.metadata.get(key) else { return Ok(None) };
        T::deserialize(value).map(Some).map_err(|_| {
            let found = match value {
                Json::Array(values) => format!("an array of {}", values.len()),
                scalar => scalar.to_string(),
            };
            self.broken(format!("metadata {key} is {found}, expected {expected}"))
        })
    }

    /// A value of the metadata that must be there.
    pub(crate) fn required<'a, T: Deserialize<'a>>(
        &'a self,
        key: &str,
        expected: &str,
    ) -> Result<T> {
        let missing = || self.broken(format!("metadata {key} is missing"));
        self.optional(key, expected)?.ok_or_else(missing)
    }

    /// A whole number under `{architecture}.{key}` that must be there and positive.
    pub(crate) fn size(&self, key: &str) -> Result<i64> {
        let key = self.key(key);
        match self.required(&key, "an integer")? {
            size if size > 0 => Ok(size),
            size => Err(self.broken(format!("metadata {key} is {size}, expected at least 1"))),
        }
    }

    /// `{architecture}.{key}`.
    pub(crate) fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// Gives the header's tensors their Hugging Face names.
    fn with_tensors(mut self) -> Result<Self> {
        let (n_heads, n_kv_heads) = (self.size("attention.head_count")?, self.key_value_heads()?);
        let mut unknown = Vec::new();
        for (name, info) in std::mem::take(&mut self.header.tensors) {
            if name == ROPE_FREQUENCIES {
                self.rope_frequencies = Some(info);
                continue;
            }
            let Some(hugging_face_name) = hugging_face_name(&name) else {
                unknown.push(name);
                continue;
            };
            let interleaved_heads = match (self.architecture, name.rsplit('.').nth(1)) {
                ("llama", Some("attn_q")) => Some(n_heads),
                ("llama", Some("attn_k")) => Some(n_kv_heads),
                _ => None,
            };
            self.tensors.insert(hugging_face_name, Stored { name, info, interleaved_heads });
        }
        if unknown.is_empty() {
            return Ok(self);
        }
        unknown.sort_unstable();
        let more = unknown.len().saturating_sub(UNKNOWN_SHOWN);
        unknown.truncate(UNKNOWN_SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let names = unknown.join(", ");
        Err(self
            .broken(format!("it holds tensors that no Llama-family decoder has: {names}{more}")))
    }

    /// Key and value heads; as many as query heads where the file does not say.
    pub(crate) fn key_value_heads(&self) -> Result<i64> {
        let own = "attention.head_count_kv";
        let is_given = self.header.metadata.contains_key(&self.key(own));
        self.size(if is_given { own } else { "attention.head_count" })
    }
}

/// Names that an error lists.
const UNKNOWN_SHOWN: usize = 5;

/// The tensor in which llama.cpp keeps the factors of llama3's rope scaling.
pub(crate) const ROPE_FREQUENCIES: &str = "rope_freqs.weight";

/// `blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`.
fn hugging_face_name(name: &str) -> Option<String> {
    let of_model = [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
    ];
    if let Some((_, found)) = of_model.iter().find(|(own, _)| *own == name) {
        return Some((*found).to_owned());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (module, parameter) = rest.rsplit_once('.')?;
    let module = match module {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    matches!(parameter, "weight" | "bias")
        .then(|| format!("model.layers.{layer}.{module}.{parameter}"))
}
