//! A walk over a GGUF header that trusts nothing in it.
//!
//! The header is read by candle-core; what it would panic on, or answer with a huge allocation, is refused here first:
//! counts and lengths past the end of the file, an alignment of zero, dimensions whose product overflows.

use std::collections::HashSet;
use std::io::{BufReader, Read, Seek};

use candle_core::quantized::GgmlDType;

/// Far above any real header (a vocabulary has some 10⁵ entries), far below what would exhaust memory.
const MAX_ARRAY_ELEMENTS: u64 = 1 << 24;
const MAX_ARRAY_DEPTH: u32 = 4;
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

type Checked<T> = std::result::Result<T, String>;

/// Checks the header and the extent of every tensor against the length of the file.
///
/// # Errors
/// What was found and what was expected.
pub(crate) fn check_header(file: impl Read + Seek, len: u64) -> Checked<()> {
    let mut walk = Walk { reader: BufReader::new(file), position: 0, len };
    walk.header()
}

struct Walk<R> {
    reader: BufReader<R>,
    position: u64,
    len: u64,
}

impl<R: Read + Seek> Walk<R> {
    fn header(&mut self) -> Checked<()> {
        let magic: [u8; 4] = self.bytes()?;
        if &magic != b"GGUF" {
            return Err(format!("it starts with {magic:?}, a GGUF file starts with \"GGUF\""));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("GGUF version {version}; versions 2 and 3 can be read"));
        }
        let n_tensors = self.u64()?;
        let n_entries = self.u64()?;
        let mut alignment = DEFAULT_ALIGNMENT;
        let mut keys = HashSet::new();
        for _ in 0..n_entries {
            let key = self.string()?;
            let value_type = self.u32()?;
            if key == "general.alignment" {
                if value_type != 4 {
                    return Err(format!(
                        "general.alignment has type {value_type}, expected 4 (u32)"
                    ));
                }
                alignment = u64::from(self.u32()?);
                if !alignment.is_power_of_two() {
                    return Err(format!(
                        "general.alignment is {alignment}, expected a power of two"
                    ));
                }
            } else {
                self.skip_value(value_type, 0)?;
            }
            if !keys.insert(key.clone()) {
                return Err(format!("metadata key {key} is given twice"));
            }
        }
        let mut names = HashSet::new();
        let mut extents = Vec::new();
        for _ in 0..n_tensors {
            let name = self.string()?;
            let size = self.tensor_bytes(&name)?;
            let offset = self.u64()?;
            if !names.insert(name.clone()) {
                return Err(format!("tensor {name} is given twice"));
            }
            extents.push((name, offset, size));
        }
        let data_start = self.position.next_multiple_of(alignment);
        for (name, offset, size) in extents {
            let end = data_start.checked_add(offset).and_then(|start| start.checked_add(size));
            if end.is_none_or(|end| end > self.len) {
                return Err(format!(
                    "tensor {name} needs {size} bytes at {offset} past {data_start}, the file has {} in all: it is cut short",
                    self.len
                ));
            }
        }
        Ok(())
    }

    /// Reads a tensor's dimensions and type, and returns how many bytes it takes.
    fn tensor_bytes(&mut self, name: &str) -> Checked<u64> {
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
        let block = dtype.block_size() as u64;
        let row = dimensions.first().copied().unwrap_or(1);
        if row % block != 0 {
            return Err(format!(
                "tensor {name} has rows of {row}, expected a multiple of its block of {block}"
            ));
        }
        Ok(n_elements / block * dtype.type_size() as u64)
    }

    fn skip_value(&mut self, value_type: u32, depth: u32) -> Checked<()> {
        match value_type {
            8 => self.string().map(drop),
            9 => {
                let element_type = self.u32()?;
                let n = self.u64()?;
                if depth >= MAX_ARRAY_DEPTH || n > MAX_ARRAY_ELEMENTS {
                    return Err(format!(
                        "an array of {n} elements at depth {depth}; at most {MAX_ARRAY_ELEMENTS} at depth {MAX_ARRAY_DEPTH}"
                    ));
                }
                match scalar_bytes(element_type) {
                    Some(size) => self.skip(n * size),
                    None => (0..n).try_for_each(|_| self.skip_value(element_type, depth + 1)),
                }
            }
            scalar => {
                let size = scalar_bytes(scalar).ok_or_else(|| {
                    format!("a value of type {scalar}; types 0 to 12 can be read")
                })?;
                self.skip(size)
            }
        }
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

    fn skip(&mut self, n: u64) -> Checked<()> {
        self.expect(n)?;
        self.reader.seek_relative(n as i64).map_err(|failed| failed.to_string())?;
        self.position += n;
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

/// The size of a metadata value that is neither a string nor an array.
fn scalar_bytes(value_type: u32) -> Option<u64> {
    match value_type {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
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
