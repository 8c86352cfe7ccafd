//! A reader of untrusted GGUF headers.
//!
//! It refuses counts and lengths past the end of the file, an alignment of zero, and dimensions whose product overflows,
//! before it allocates memory for them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use candle_core::quantized::GgmlDType;
use serde_json::Value as Json;

use crate::{Error, Result, io_error};

/// Far above any real header (a vocabulary has some 10⁵ entries), far too small to exhaust memory.
const MAX_ARRAY_ELEMENTS: u64 = 1 << 24;
const MAX_ARRAY_DEPTH: u32 = 4;
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

type Checked<T> = std::result::Result<T, String>;

/// A header whose tensors all lie within the file.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: HashMap<String, Json>,
    pub(crate) tensors: HashMap<String, TensorInfo>,
    data_start: u64,
}

/// The place of a tensor, and its form.
#[derive(Debug)]
pub(crate) struct TensorInfo {
    pub(crate) dtype: GgmlDType,
    pub(crate) shape: Vec<i64>, // the product of the sizes does not overflow
    offset: u64,
    bytes: u64,
}

impl TensorInfo {
    /// Bytes of a row; its entries are contiguous in the file.
    pub(crate) fn row_bytes(&self) -> usize {
        let columns = *self.shape.last().unwrap_or(&1) as usize;
        columns / self.dtype.block_size() * self.dtype.type_size()
    }
}

impl Header {
    /// Reads the header of a file, and checks the extent of every tensor against the length of the file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Format`] if it is no whole GGUF file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(io_error("read", path))?;
        let len = file.metadata().map_err(io_error("read", path))?.len();
        let mut reader = Reader { reader: BufReader::new(file), position: 0, len };
        reader.header().map_err(|reason| Error::Format { path: path.to_owned(), reason })
    }

    /// Where a tensor's data begin in the file.
    pub(crate) fn start(&self, tensor: &TensorInfo) -> u64 {
        self.data_start + tensor.offset
    }
}

struct Reader<R> {
    reader: BufReader<R>,
    position: u64,
    len: u64,
}

impl<R: Read> Reader<R> {
    fn header(&mut self) -> Checked<Header> {
        let magic: [u8; 4] = self.bytes()?;
        if &magic != b"GGUF" {
            return Err(format!("it starts with {magic:?}, a GGUF file starts with \"GGUF\""));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("GGUF version {version}; versions 2 and 3 can be read"));
        }
        let (n_tensors, n_entries) = (self.u64()?, self.u64()?);
        let mut metadata = HashMap::new();
        for _ in 0..n_entries {
            let key = self.string()?;
            let value_type = self.u32()?;
            let value = self.value(value_type, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("metadata key {key} is given twice"));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(found) => found
                .as_u64()
                .filter(|n| n.is_power_of_two())
                .ok_or_else(|| format!("general.alignment is {found}, expected a power of two"))?,
        };
        let mut tensors = HashMap::new();
        for _ in 0..n_tensors {
            let name = self.string()?;
            let tensor = self.tensor(&name)?;
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(format!("tensor {name} is given twice"));
            }
        }
        let data_start = self.position.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        for (name, TensorInfo { offset, bytes, .. }) in &tensors {
            let end = data_start.checked_add(*offset).and_then(|start| start.checked_add(*bytes));
            if end.is_none_or(|end| end > self.len) {
                return Err(format!(
                    "tensor {name} needs {bytes} bytes at {offset} past {data_start}, the file has {} in all: it is cut short",
                    self.len
                ));
            }
        }
        Ok(Header { metadata, tensors, data_start })
    }

    fn tensor(&mut self, name: &str) -> Checked<TensorInfo> {
        let n_dimensions = self.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&n_dimensions) {
            return Err(format!(
                "tensor {name} has {n_dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}"
            ));
        }
        let dimensions = (0..n_dimensions).map(|_| self.u64()).collect::<Checked<Vec<u64>>>()?;
        let code = self.u32()?;
        let dtype = dtype(code).ok_or_else(|| {
            format!(
                "tensor {name} has ggml type {code}; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K can be read"
            )
        })?;
        let n_elements = dimensions
            .iter()
            .try_fold(1u64, |product, &size| product.checked_mul(size))
            .filter(|&n| n <= i64::MAX as u64 / 8)
            .ok_or_else(|| {
                format!("tensor {name} has dimensions {dimensions:?}, too many elements")
            })?;
        let (block, row) = (dtype.block_size() as u64, dimensions[0]);
        if row % block != 0 {
            return Err(format!(
                "tensor {name} has rows of {row}, expected a multiple of its block of {block}"
            ));
        }
        let bytes = n_elements / block * dtype.type_size() as u64;
        let shape = dimensions.iter().rev().map(|&size| size as i64).collect();
        Ok(TensorInfo { dtype, shape, offset: self.u64()?, bytes })
    }

    fn value(&mut self, value_type: u32, depth: u32) -> Checked<Json> {
        Ok(match value_type {
            0 => u8::from_le_bytes(self.bytes()?).into(),
            1 => i8::from_le_bytes(self.bytes()?).into(),
            2 => u16::from_le_bytes(self.bytes()?).into(),
            3 => i16::from_le_bytes(self.bytes()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.bytes()?).into(),
            6 => f32::from_le_bytes(self.bytes()?).into(),
            7 => (self.bytes()? != [0]).into(),
            8 => self.string()?.into(),
            9 => {
                let element_type = self.u32()?;
                let n = self.u64()?;
                if depth >= MAX_ARRAY_DEPTH || n > MAX_ARRAY_ELEMENTS {
                    return Err(format!(
                        "an array of {n} elements at depth {depth}; at most {MAX_ARRAY_ELEMENTS} at depth {MAX_ARRAY_DEPTH}"
                    ));
                }
                (0..n).map(|_| self.value(element_type, depth + 1)).collect::<Checked<_>>()?
            }
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.bytes()?).into(),
            12 => f64::from_le_bytes(self.bytes()?).into(),
            other => return Err(format!("a value of type {other}; types 0 to 12 can be read")),
        })
    }

    fn string(&mut self) -> Checked<String> {
        let len = self.u64()?;
        self.expect(len)?;
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| "a string that is not UTF-8".to_owned())
    }

    fn u32(&mut self) -> Checked<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Checked<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Checked<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Checked<()> {
        self.expect(bytes.len() as u64)?;
        self.reader.read_exact(bytes).map_err(|failed| failed.to_string())?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn expect(&self, n: u64) -> Checked<()> {
        let left = self.len - self.position;
        if n > left {
            return Err(format!(
                "the header wants {n} bytes at {}, {left} are left: it is cut short or damaged",
                self.position
            ));
        }
        Ok(())
    }
}

/// The element types that are dequantised. Q8_1 and Q8_K are left out: they exist only inside matrix products.
fn dtype(code: u32) -> Option<GgmlDType> {
    Some(match code {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}
