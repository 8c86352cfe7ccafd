//! One safetensors file: read from a memory map, written whole or not at all.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result, atomic_write, io_error};

/// A memory-mapped safetensors file whose header has been checked against its length.
#[derive(Debug)]
pub(crate) struct SafetensorsFile {
    path: PathBuf,
    map: Mmap,
    tensors: BTreeMap<String, Slot>,
    metadata: BTreeMap<String, String>,
}

/// Where one tensor lies in the map.
#[derive(Debug)]
struct Slot {
    dtype: Dtype,
    shape: Vec<i64>,
    range: Range<usize>,
}

impl SafetensorsFile {
    /// Maps `path` and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let broken = |source| Error::Safetensors { path: path.to_owned(), source };
        let file = File::open(path).map_err(io_error("read", path))?;
        // SAFETY: the map is only read. Checkpoints are replaced by renaming, here and by the tools of the field, so the
        // mapped file is not written to; a program that truncates it in place while it is mapped ends this process.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(io_error("read", path))?;
        let (header_len, header) = SafeTensors::read_metadata(&map).map_err(broken)?;
        let data_start = size_of::<u64>() + header_len;
        let mut tensors = BTreeMap::new();
        for (name, info) in header.tensors() {
            let shape: Result<Vec<i64>, _> =
                info.shape.iter().map(|&size| i64::try_from(size)).collect();
            let shape =
                shape.map_err(|_| broken(safetensors::SafeTensorError::ValidationOverflow))?;
            let (start, end) = info.data_offsets;
            let range = data_start + start..data_start + end;
            tensors.insert(name, Slot { dtype: info.dtype, shape, range });
        }
        let metadata = header.metadata().clone().into_iter().flatten().collect();
        Ok(Self { path: path.to_owned(), map, tensors, metadata })
    }

    /// The names and shapes, in order of name.
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (&str, &[i64])> {
        self.tensors.iter().map(|(name, slot)| (name.as_str(), slot.shape.as_slice()))
    }

    /// The type of each tensor, by its name in the format.
    pub(crate) fn dtypes(&self) -> impl Iterator<Item = String> {
        self.tensors.values().map(|slot| slot.dtype.to_string())
    }

    /// Copies one tensor out of the map, in its own kind, to the CPU.
    pub(crate) fn load(&self, name: &str) -> Result<Tensor> {
        let (slot, kind) = self.slot(name)?;
        // The header check makes the range exactly as long as shape and dtype say.
        Ok(Tensor::f_from_data_size(&self.map[slot.range.clone()], &slot.shape, kind)?)
    }

    /// Copies the rows `first..first + n` of a matrix with this many columns out of the map, in its own kind, to the CPU. Their pages are
    /// released from this process's memory.
    pub(crate) fn load_rows(
        &self,
        name: &str,
        (first, n): (i64, i64),
        columns: i64,
    ) -> Result<Tensor> {
        let (slot, kind) = self.slot(name)?;
        let row = columns as usize * kind.elt_size_in_bytes();
        let start = slot.range.start + first as usize * row;
        let range = start..start + n as usize * row;
        let rows = Tensor::f_from_data_size(&self.map[range.clone()], &[n, columns], kind)?;
        self.release(range);
        Ok(rows)
    }

    /// Releases pages that have been read: they would count as this process's memory until the system reclaims them.
    fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            // SAFETY: the map is of a file, private and never written to: a page that is read again is read from the file again.
            // If it fails, the pages merely stay.
            #[allow(unsafe_code)]
            let _stays = unsafe {
                self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    fn slot(&self, name: &str) -> Result<(&Slot, Kind)> {
        let slot = self.tensors.get(name).ok_or_else(|| Error::UnknownTensor {
            path: self.path.clone(),
            name: name.to_owned(),
        })?;
        let kind = DTYPES.iter().find(|(other, _)| *other == slot.dtype);
        let &(_, kind) = kind.ok_or_else(|| Error::Dtype {
            name: name.to_owned(),
            dtype: slot.dtype.to_string(),
            action: "read",
        })?;
        Ok((slot, kind))
    }
}

/// Reads every tensor of a small safetensors file, each in its own kind and shape, to the CPU.
///
/// # Errors
/// [`Error::Io`] or [`Error::Safetensors`] if the file is missing or broken, [`Error::Dtype`] if libtorch has no such type.
pub fn load_safetensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file = SafetensorsFile::open(path)?;
    file.tensors.keys().map(|name| Ok((name.clone(), file.load(name)?))).collect()
}

/// Reads the metadata map of a safetensors file; empty if it has none.
///
/// # Errors
/// [`Error::Io`] or [`Error::Safetensors`] if the file is missing or broken.
pub fn load_safetensors_metadata(path: &Path) -> Result<BTreeMap<String, String>> {
    Ok(SafetensorsFile::open(path)?.metadata)
}

/// Writes tensors to a safetensors file, which appears whole or not at all.
///
/// Tensors may be on any device and of any shape and layout; each is copied to the CPU when its turn comes.
///
/// # Errors
/// [`Error::DuplicateTensor`], [`Error::Dtype`] for kinds that the format lacks, or [`Error::Io`].
pub fn save_safetensors(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: Option<HashMap<String, String>>,
) -> Result<()> {
    let mut names = BTreeSet::new();
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        if !names.insert(name) {
            return Err(Error::DuplicateTensor(name.clone()));
        }
        views.push((name, TensorView::new(name, tensor)?));
    }
    let has_order = metadata.as_ref().is_some_and(|metadata| metadata.len() > 1);
    atomic_write(path, |temporary| {
        let written = safetensors::serialize_to_file(views, metadata, temporary);
        written.map_err(|failed| match failed {
            safetensors::SafeTensorError::IoError(source) => io_error("write", path)(source),
            source => Error::Safetensors { path: path.to_owned(), source },
        })?;
        if has_order {
            sort_metadata(temporary).map_err(io_error("write", path))?;
        }
        Ok(())
    })
}

/// Sorts the metadata of a file by name, in place: the library writes them in the order of a hash map, which differs between runs.
fn sort_metadata(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut length = [0; size_of::<u64>()];
    file.read_exact(&mut length)?;
    let mut header = vec![0; u64::from_le_bytes(length) as usize];
    file.read_exact(&mut header)?;
    let mut fields: Map<String, Value> = serde_json::from_slice(&header)?;
    if let Some(Value::Object(metadata)) = fields.get_mut("__metadata__") {
        metadata.sort_keys();
    }
    let mut sorted = serde_json::to_vec(&fields)?;
    assert!(sorted.len() <= header.len(), "invariant: sorting adds nothing");
    sorted.resize(header.len(), b' '); // as the format pads
    file.seek(SeekFrom::Start(size_of::<u64>() as u64))?;
    file.write_all(&sorted)
}

/// A tensor in the form that the safetensors writer needs.
struct TensorView<'a> {
    tensor: &'a Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl<'a> TensorView<'a> {
    fn new(name: &str, tensor: &'a Tensor) -> Result<Self> {
        let kind = tensor.f_kind()?;
        let dtype = DTYPES.iter().find(|(_, other)| *other == kind);
        let &(dtype, _) = dtype.ok_or_else(|| Error::Dtype {
            name: name.to_owned(),
            dtype: format!("{kind:?}"),
            action: "written",
        })?;
        let shape = tensor.size().iter().map(|&size| size as usize).collect(); // sizes are never negative
        Ok(Self { tensor, dtype, shape })
    }
}

impl View for TensorView<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let on_cpu = self.tensor.detach().to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0; self.data_len()];
        on_cpu.copy_data_u8(&mut bytes, on_cpu.numel());
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// The element types that safetensors and libtorch share.
const DTYPES: [(Dtype, Kind); 10] = [
    (Dtype::F32, Kind::Float),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::F64, Kind::Double),
    (Dtype::I64, Kind::Int64),
    (Dtype::I32, Kind::Int),
    (Dtype::I16, Kind::Int16),
    (Dtype::I8, Kind::Int8),
    (Dtype::U8, Kind::Uint8),
    (Dtype::BOOL, Kind::Bool),
];
