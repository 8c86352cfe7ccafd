//! Files that `torch.save` wrote: a zip of one pickle and the tensors' bytes.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use reft_models::{Error, Result, io_error};
use tch::{Device, Tensor};
use zip::ZipArchive;

use crate::pyreft::pickle::{Node, Pickle, Strided, Value, View};

/// Largest depth of nested dictionaries.
const MAX_DEPTH: usize = 16;
/// Largest length of a tensor's name, in bytes.
const MAX_NAME: usize = 256;
/// Largest ratio of the tensors' bytes to the file's: tied tensors share a storage, but each gets its own memory here.
const MAX_EXPANSION: u64 = 16;

/// Reads a dictionary of tensors that `torch.save` wrote (since torch 1.6). Nothing in the file is executed.
///
/// Names of inner dictionaries are joined by dots. Tensors keep their kind and shape and are contiguous, on the CPU.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Format`] if it is not such a zip, is damaged, or holds anything but
/// (dictionaries of) tensors.
pub fn load_torch_pickle(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file = File::open(path).map_err(io_error("read", path))?;
    let len = file.metadata().map_err(io_error("read", path))?.len();
    let tensors = tensors_of(BufReader::new(file), len);
    tensors.map_err(|reason| Error::Format { path: path.to_owned(), reason })
}

fn tensors_of(file: BufReader<File>, len: u64) -> Result<BTreeMap<String, Tensor>, String> {
    let mut archive = Archive::open(file, len)?;
    let bytes = archive.read("data.pkl")?;
    let pickle = Pickle::read(&bytes)?;
    let mut found = Found { pickle: &pickle, views: BTreeMap::new(), seen: HashSet::new() };
    found.collect(pickle.root, "", 0)?;
    let strided = |view: View| pickle.strided(view).expect("invariant: a tensor's parts are there");
    let sizes = found.views.values().map(|view| n_bytes(&strided(*view)));
    let total: u64 = sizes.fold(0, u64::saturating_add);
    if total > len.saturating_mul(MAX_EXPANSION) {
        return Err(format!("its tensors take {total} bytes, the file has {len}"));
    }
    let tensor = |(name, view): (String, View)| match archive.tensor(&strided(view)) {
        Ok(tensor) => Ok((name, tensor)),
        Err(reason) => Err(format!("tensor {name}: {reason}")),
    };
    found.views.into_iter().map(tensor).collect()
}

/// The tensors of a pickle, by name.
struct Found<'a> {
    pickle: &'a Pickle<'a>,
    views: BTreeMap<String, View>,
    /// Dictionaries already read. Each is read once, so a dictionary inside itself, or shared, is an error.
    seen: HashSet<*const Node<'a>>,
}

impl Found<'_> {
    /// Finds every tensor below `value`.
    fn collect(&mut self, value: Value, name: &str, depth: usize) -> Result<(), String> {
        match self.pickle.node(value) {
            Some(Node::Tensor(view)) if !name.is_empty() => {
                match self.views.insert(name.to_owned(), *view) {
                    None => Ok(()),
                    Some(_) => Err(format!("tensor {name} is given twice")),
                }
            }
            Some(dict @ Node::Dict(items)) => {
                if depth == MAX_DEPTH {
                    return Err(format!("dictionaries lie more than {MAX_DEPTH} deep"));
                }
                if !self.seen.insert(std::ptr::from_ref(dict)) {
                    return Err(format!("the dictionary {name:?} stands in two places"));
                }
                for &(key, value) in items {
                    let Some(key) = self.pickle.text(key) else {
                        return Err(format!("a key of the dictionary {name:?} is not a string"));
                    };
                    if name.len() + key.len() >= MAX_NAME {
                        return Err(format!("a name in it is longer than {MAX_NAME} bytes"));
                    }
                    let name =
                        if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
                    self.collect(value, &name, depth + 1)?;
                }
                Ok(())
            }
            _ if name.is_empty() => Err("it holds something other than a dictionary".to_owned()),
            _ => Err(format!("{name:?} is neither a tensor nor a dictionary of tensors")),
        }
    }
}

/// The zip around a pickle.
struct Archive {
    zip: ZipArchive<BufReader<File>>,
    /// The directory of all files in the zip.
    root: String,
    len: u64,
}

impl Archive {
    fn open(reader: BufReader<File>, len: u64) -> Result<Self, String> {
        let zip = ZipArchive::new(reader).map_err(|failed| {
            format!("it is not a zip as torch.save writes it ({failed}); save it again with a torch since 1.6")
        })?;
        let mut roots = Vec::new();
        for name in zip.file_names() {
            let name = name.map_err(|failed| failed.to_string())?;
            roots.extend(name.strip_suffix("data.pkl").map(str::to_owned));
        }
        let [root] = &roots[..] else {
            return Err(format!("it holds {} files data.pkl, expected one", roots.len()));
        };
        let mut archive = Self { root: root.clone(), zip, len };
        if archive.zip.index_for_name(&format!("{}byteorder", archive.root)).is_some() {
            let order = archive.read("byteorder")?;
            if order != b"little" {
                let order = String::from_utf8_lossy(&order);
                return Err(format!("its byte order is {order:?}, expected \"little\""));
            }
        }
        Ok(archive)
    }

    /// Reads one file of the zip. Files are stored uncompressed, so none is longer than the zip.
    fn read(&mut self, name: &str) -> Result<Vec<u8>, String> {
        let name = format!("{}{name}", self.root);
        let broken = |failed: &dyn std::fmt::Display| format!("its part {name}: {failed}");
        let part = self.zip.by_name(&name).map_err(|failed| broken(&failed))?;
        if part.size() > self.len {
            return Err(broken(&format!("{} bytes, the file has {}", part.size(), self.len)));
        }
        let mut bytes = Vec::new();
        part.take(self.len).read_to_end(&mut bytes).map_err(|failed| broken(&failed))?;
        Ok(bytes)
    }

    fn tensor(&mut self, view: &Strided) -> Result<Tensor, String> {
        let Strided { kind, key, len, .. } = view;
        let bytes = self.read(&format!("data/{key}"))?;
        let n_bytes = len.checked_mul(kind.elt_size_in_bytes() as i64);
        if n_bytes != i64::try_from(bytes.len()).ok() {
            return Err(format!(
                "its storage has {} bytes, expected {len} elements of {} bytes",
                bytes.len(),
                kind.elt_size_in_bytes()
            ));
        }
        if !fits(view).unwrap_or(false) {
            let Strided { offset, size, stride, .. } = view;
            return Err(format!(
                "size {size:?} with strides {stride:?} from {offset} does not fit in {len} elements"
            ));
        }
        let build = || {
            let storage = Tensor::f_from_data_size(&bytes, &[*len], *kind)?;
            let view = storage.f_as_strided(&view.size, &view.stride, view.offset)?;
            let mut tensor = Tensor::f_empty(view.size(), (*kind, Device::Cpu))?;
            tensor.f_copy_(&view)?;
            Ok(tensor)
        };
        build().map_err(|failed: tch::TchError| failed.to_string())
    }
}

/// Whether a view lies in its storage and repeats none of its elements; `None` if its sizes overflow.
fn fits(view: &Strided) -> Option<bool> {
    let Strided { len, offset, size, stride, .. } = view;
    let not_negative = size.iter().chain(stride).chain([offset]).all(|&n| n >= 0);
    if size.len() != stride.len() || !not_negative {
        return Some(false);
    }
    let n = size.iter().try_fold(1i64, |product, &n| product.checked_mul(n))?;
    if n == 0 {
        return Some(true);
    }
    let reach = |last: i64, (&n, &step): (&i64, &i64)| last.checked_add((n - 1).checked_mul(step)?);
    let last = size.iter().zip(stride).try_fold(*offset, reach)?;
    Some(last < *len && n <= *len)
}

fn n_bytes(view: &Strided) -> u64 {
    let n = view.size.iter().fold(1u64, |product, &n| product.saturating_mul(n.unsigned_abs()));
    n.saturating_mul(view.kind.elt_size_in_bytes() as u64)
}
