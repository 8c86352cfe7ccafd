//! GGUF files: llama.cpp's format, seen as a Hugging Face checkpoint.
//!
//! Tensors get their Hugging Face names and row order, and are dequantised or kept in their blocks; [`Gguf::config`],
//! [`Gguf::tokenizer_json`] and their siblings give what the other files of a Hugging Face directory would hold.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use tch::{Device, Kind, Tensor};

use crate::atomic_file::io_error;
use crate::error::{Error, Result};
use crate::gguf_header::check_header;
use crate::quantised::{BlockFormat, Quantised};

/// A GGUF file of the Llama family.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    content: Content,
    architecture: Architecture,
    tensors: BTreeMap<String, Stored>,
}

/// The architectures whose tensors are a Llama-family decoder's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
}

/// A tensor as the file stores it, under its Hugging Face name.
#[derive(Debug)]
struct Stored {
    name: String,
    shape: Vec<i64>,
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
        check_header(&file, len).map_err(broken)?;
        let mut reader = BufReader::new(File::open(path).map_err(io_error("read", path))?);
        let content = Content::read(&mut reader).map_err(|failed| broken(failed.to_string()))?;
        let architecture = match content.metadata.get("general.architecture") {
            Some(Value::String(name)) => Architecture::from_name(name).map_err(broken)?,
            _ => return Err(broken("it names no general.architecture".to_owned())),
        };
        let mut gguf =
            Self { path: path.to_owned(), content, architecture, tensors: BTreeMap::new() };
        gguf.tensors = gguf.stored_tensors()?;
        Ok(gguf)
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The Hugging Face names and shapes of the tensors, in order of name.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[i64])> {
        self.tensors.iter().map(|(name, stored)| (name.as_str(), stored.shape.as_slice()))
    }

    /// Dequantises the rows `first..first + n` of a matrix, or all of a vector as the one row that it is, to f32 on the CPU.
    ///
    /// Rows are in the file's order: see [`Self::row_order`].
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] if it is not there, [`Error::Format`] if its data cannot be read.
    pub(crate) fn load_rows(&self, name: &str, first: i64, n: i64) -> Result<Tensor> {
        let bytes = self.row_bytes(name, first, n)?;
        let (stored, info) = self.stored(name)?;
        let elements = bytes.len() / info.ggml_dtype.type_size() * info.ggml_dtype.block_size();
        let cpu = candle_core::Device::Cpu;
        let values = qtensor_from_ggml(info.ggml_dtype, &bytes, vec![elements], &cpu)
            .and_then(|rows| rows.dequantize(&cpu)?.to_vec1::<f32>())
            .map_err(|failed| self.broken(format!("tensor {}: {failed}", stored.name)))?;
        Ok(Tensor::f_from_slice(&values)?.f_view([n, -1])?)
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
        let (_, info) = self.stored(name)?;
        let Some(format) = BlockFormat::of(info.ggml_dtype) else { return Ok(None) };
        let bytes = |first, n| self.row_bytes(name, first, n);
        Quantised::from_gguf(format, shape, options, bytes).map(Some)
    }

    /// The order in which the file's rows are those of the Hugging Face checkpoint, where it is another one.
    ///
    /// llama.cpp interleaves the two rotary halves of each head in the rows of q and k.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] if it is not there.
    pub(crate) fn row_order(&self, name: &str) -> Result<Option<Tensor>> {
        let (stored, _) = self.stored(name)?;
        let Some(n_heads) = stored.interleaved_heads else { return Ok(None) };
        let rows = Tensor::f_arange(stored.shape[0], (Kind::Int64, Device::Cpu))?;
        Ok(Some(rows.f_view([n_heads, -1, 2])?.f_transpose(1, 2)?.f_flatten(0, 2)?))
    }

    /// What the file holds of the rows `first..first + n` of a matrix, or of a vector.
    fn row_bytes(&self, name: &str, first: i64, n: i64) -> Result<Vec<u8>> {
        let (stored, info) = self.stored(name)?;
        let columns = *stored.shape.last().unwrap_or(&1) as usize; // the header check bounds them
        let row = columns / info.ggml_dtype.block_size() * info.ggml_dtype.type_size();
        let start = self.content.tensor_data_offset + info.offset + (first as usize * row) as u64;
        let mut bytes = vec![0; n as usize * row];
        let read = |bytes: &mut [u8]| {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(bytes)
        };
        read(&mut bytes).map_err(io_error("read", &self.path))?;
        Ok(bytes)
    }

    fn stored(&self, name: &str) -> Result<(&Stored, &TensorInfo)> {
        let stored = self.tensors.get(name);
        let found =
            stored.and_then(|stored| Some((stored, self.content.tensor_infos.get(&stored.name)?)));
        found.ok_or_else(|| Error::UnknownTensor { path: self.path.clone(), name: name.to_owned() })
    }

    /// The type of each tensor that the decoder uses, by its name in the format.
    pub(crate) fn dtypes(&self) -> impl Iterator<Item = String> {
        let infos = self.tensors.values().filter_map(|t| self.content.tensor_infos.get(&t.name));
        infos.map(|info| format!("{:?}", info.ggml_dtype))
    }

    /// The architecture that the file names.
    pub(crate) fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// Whether there is a tensor of this Hugging Face name.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Whether the file has a tensor of this name of its own.
    pub(crate) fn is_stored(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// An error about this file.
    pub(crate) fn broken(&self, reason: String) -> Error {
        Error::Format { path: self.path.clone(), reason }
    }

    /// A metadata value under its full key.
    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    /// A text, if the key is there.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.optional(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A whole number of any width, if the key is there.
    pub(crate) fn integer(&self, key: &str) -> Result<Option<i64>> {
        self.optional(key, "an integer", |value| match *value {
            Value::U8(n) => Some(n.into()),
            Value::I8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::I16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::I32(n) => Some(n.into()),
            Value::U64(n) => i64::try_from(n).ok(),
            Value::I64(n) => Some(n),
            _ => None,
        })
    }

    /// A floating-point number, if the key is there.
    pub(crate) fn float(&self, key: &str) -> Result<Option<f32>> {
        self.optional(key, "a number", |value| match *value {
            Value::F32(x) => Some(x),
            Value::F64(x) => Some(x as f32),
            _ => None,
        })
    }

    /// A truth value, if the key is there.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.optional(key, "a bool", |value| match *value {
            Value::Bool(flag) => Some(flag),
            _ => None,
        })
    }

    /// An array, if the key is there.
    pub(crate) fn array(&self, key: &str) -> Result<Option<&[Value]>> {
        self.optional(key, "an array", |value| match value {
            Value::Array(values) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// A whole number under `{architecture}.{key}` that must be there and positive.
    pub(crate) fn size(&self, key: &str) -> Result<i64> {
        let key = format!("{}.{key}", self.architecture.name());
        match self.integer(&key)? {
            Some(size) if size > 0 => Ok(size),
            Some(size) => {
                Err(self.broken(format!("metadata {key} is {size}, expected at least 1")))
            }
            None => Err(self.broken(format!("metadata {key} is missing"))),
        }
    }

    fn optional<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let found = value.value_type();
        convert(value).map(Some).ok_or_else(|| {
            self.broken(format!("metadata {key} has type {found:?}, expected {expected}"))
        })
    }

    /// Dequantises the tensor that the file calls `name`, in the file's row order.
    pub(crate) fn dequantise(&self, name: &str) -> candle_core::Result<Vec<f32>> {
        let cpu = candle_core::Device::Cpu;
        let mut reader = BufReader::new(File::open(&self.path)?);
        let quantised = self.content.tensor(&mut reader, name, &cpu)?;
        quantised.dequantize(&cpu)?.flatten_all()?.to_vec1()
    }

    fn stored_tensors(&self) -> Result<BTreeMap<String, Stored>> {
        let n_heads = self.size("attention.head_count")?;
        let n_kv_heads = self.key_value_heads()?;
        let mut tensors = BTreeMap::new();
        let mut unknown = Vec::new();
        for (name, info) in &self.content.tensor_infos {
            if name == ROPE_FREQUENCIES {
                continue; // part of the config: see `rope_scaling`
            }
            let Some(hugging_face_name) = hugging_face_name(name) else {
                unknown.push(name.as_str());
                continue;
            };
            let shape = info.shape.dims().iter().map(|&size| size as i64).collect(); // the header check bounds them
            let interleaved_heads = match (self.architecture, name.rsplit('.').nth(1)) {
                (Architecture::Llama, Some("attn_q")) => Some(n_heads),
                (Architecture::Llama, Some("attn_k")) => Some(n_kv_heads),
                _ => None,
            };
            let stored = Stored { name: name.clone(), shape, interleaved_heads };
            tensors.insert(hugging_face_name, stored);
        }
        if unknown.is_empty() {
            return Ok(tensors);
        }
        unknown.sort_unstable();
        Err(self.broken(format!(
            "it holds tensors that no Llama-family decoder has: {}",
            list(&unknown)
        )))
    }

    /// Key and value heads; as many as query heads where the file does not say.
    pub(crate) fn key_value_heads(&self) -> Result<i64> {
        let key = format!("{}.attention.head_count_kv", self.architecture.name());
        if self.value(&key).is_some() {
            self.size("attention.head_count_kv")
        } else {
            self.size("attention.head_count")
        }
    }
}

/// The tensor in which llama.cpp keeps the factors of llama3's rope scaling.
pub(crate) const ROPE_FREQUENCIES: &str = "rope_freqs.weight";

impl Architecture {
    /// Its name in the file, and the prefix of its metadata keys.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    fn from_name(name: &str) -> Result<Self, String> {
        match name {
            "llama" => Ok(Self::Llama),
            "qwen2" => Ok(Self::Qwen2),
            "qwen3" => Ok(Self::Qwen3),
            other => {
                Err(format!("its architecture is {other:?}; llama, qwen2 and qwen3 can be read"))
            }
        }
    }
}

/// `blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`.
fn hugging_face_name(name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".to_owned()),
        "output_norm.weight" => return Some("model.norm.weight".to_owned()),
        "output.weight" => return Some("lm_head.weight".to_owned()),
        _ => {}
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

/// The first few names of a list, and how many more there are.
fn list<T: Display>(names: &[T]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = names.iter().take(SHOWN).map(T::to_string).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
