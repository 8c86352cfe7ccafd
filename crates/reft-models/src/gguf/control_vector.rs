use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom};
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use serde_json::Value as Json;
use tch::Tensor;

use crate::gguf::header::Header;
use crate::gguf::writing::file::quantised;
use crate::{Error, Result, atomic_write, io_error};

/// A control vector of llama.cpp: directions by block, each added to the block's output at every token.
///
/// In its file, GGUF of architecture `controlvector`, `direction.N` belongs to block `N`, counted from 0; llama.cpp steers no block 0.
#[derive(Debug)]
pub struct ControlVector {
    /// The model that the file was made for: an architecture's name.
    pub model_hint: Option<String>,
    /// Directions `[d]` in f32, by block.
    pub directions: BTreeMap<usize, Tensor>,
}

const ARCHITECTURE: &str = "controlvector";
const MODEL_HINT: &str = "controlvector.model_hint";
const LAYER_COUNT: &str = "controlvector.layer_count";
const DIRECTION: &str = "direction.";

impl ControlVector {
    /// Reads a file that llama.cpp, repeng or [`Self::write`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for another architecture, a tensor with another name than `direction.N` with `N ≥ 1`, a tensor that is no
    /// vector in f32, vectors of unequal sizes, numbers that are not finite, or a file without tensors.
    pub fn read(path: &Path) -> Result<Self> {
        let header = Header::open(path)?;
        let broken = |reason: String| Error::Format { path: path.to_owned(), reason };
        let architecture = header.metadata.get("general.architecture").and_then(Json::as_str);
        if architecture != Some(ARCHITECTURE) {
            let found = architecture.unwrap_or("none");
            return Err(broken(format!("its architecture is {found}, expected {ARCHITECTURE}")));
        }
        let mut file = File::open(path).map_err(io_error("read", path))?;
        let mut directions: BTreeMap<usize, Tensor> = BTreeMap::new();
        for (name, info) in &header.tensors {
            let layer = name.strip_prefix(DIRECTION).and_then(|layer| layer.parse().ok());
            let layer = layer.filter(|layer: &usize| *layer >= 1).ok_or_else(|| {
                broken(format!(
                    "it has a tensor {name}, expected direction.N of a block N from 1 on, as llama.cpp takes it"
                ))
            })?;
            let (GgmlDType::F32, &[d]) = (info.dtype, &info.shape[..]) else {
                return Err(broken(format!(
                    "{name} is {:?} of shape {:?}, expected a vector in F32",
                    info.dtype, info.shape
                )));
            };
            let mut bytes = vec![0; 4 * d as usize];
            file.seek(SeekFrom::Start(header.start(info)))
                .and_then(|_| file.read_exact(&mut bytes))
                .map_err(io_error("read", path))?;
            let number = |four: &[u8]| f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
            let numbers: Vec<f32> = bytes.chunks_exact(4).map(number).collect();
            if numbers.iter().any(|number| !number.is_finite()) {
                return Err(broken(format!("{name} has numbers that are not finite")));
            }
            if let Some((other, size)) = directions
                .iter()
                .map(|(layer, v)| (*layer, v.size()[0]))
                .find(|(_, size)| *size != d)
            {
                return Err(broken(format!(
                    "{name} has {d} numbers and direction.{other} has {size}; all have the model's hidden size"
                )));
            }
            directions.insert(layer, Tensor::from_slice(&numbers));
        }
        if directions.is_empty() {
            return Err(broken("it has no direction".to_owned()));
        }
        let hint = header.metadata.get(MODEL_HINT).and_then(Json::as_str);
        Ok(Self { model_hint: hint.map(str::to_owned), directions })
    }

    /// Writes the file that llama.cpp reads.
    ///
    /// # Errors
    /// [`Error::OutputExists`]; [`Error::NoGgufForm`] for a direction of block 0, which llama.cpp does not steer; a file that cannot be
    /// written.
    pub fn write(&self, path: &Path) -> Result<()> {
        if path.exists() {
            return Err(Error::OutputExists(path.to_owned()));
        }
        if self.directions.contains_key(&0) {
            let reason = "llama.cpp adds no control vector to the output of block 0; make the direction at a layer from 1 on";
            return Err(Error::NoGgufForm { reason: reason.to_owned() });
        }
        let text = |text: &str| Value::String(text.to_owned());
        let n = self.directions.len() as i32;
        let mut keys = vec![("general.architecture", text(ARCHITECTURE))];
        keys.extend(self.model_hint.as_deref().map(|hint| (MODEL_HINT, text(hint))));
        keys.push((LAYER_COUNT, Value::I32(n)));
        let tensor = |(layer, v): (&usize, &Tensor)| {
            Ok((format!("{DIRECTION}{layer}"), quantised(v, GgmlDType::F32)?))
        };
        let tensors = self.directions.iter().map(tensor).collect::<Result<Vec<_>>>()?;
        atomic_write(path, |temporary| -> Result<()> {
            let file = File::create(temporary).map_err(io_error("write", path))?;
            let keys: Vec<(&str, &Value)> = keys.iter().map(|(key, value)| (*key, value)).collect();
            let tensors: Vec<(&str, &QTensor)> =
                tensors.iter().map(|(name, tensor)| (&**name, tensor)).collect();
            gguf_file::write(&mut BufWriter::new(file), &keys, &tensors)
                .map_err(|failed| io_error("write", path)(std::io::Error::other(failed)))
        })
    }
}
