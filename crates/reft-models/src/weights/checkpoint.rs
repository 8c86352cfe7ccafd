//! The tensors of a checkpoint, by name, read on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use crate::files::safetensors_file::SafetensorsFile;
use crate::weights::quantised::{BlockFormat, Quantised, row_chunks};
use crate::weights::shards::{INDEX, WHOLE, read_shard_index};
use crate::{Error, Gguf, ModelTensor, Result, Weight, WeightStorage, io_error};

/// Named tensors of a checkpoint: a safetensors file, a sharded set of them, a GGUF file, or no file ([`Weights::random`],
/// [`Weights::shapes_only`]).
///
/// Opening reads headers only. [`Weights::load`] copies one tensor from the memory map to the device, a few rows at a time (GGUF:
/// dequantises it; random: draws it). So memory never holds a second copy of the model, not even as pages of the files.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    source: Source,
    storage: WeightStorage,
    int8_products: bool,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
enum Source {
    Safetensors(Vec<SafetensorsFile>),
    Gguf(Box<Gguf>),
    Random,
    ShapesOnly,
}

/// Standard deviation of random matrices, as at the initialisation of Hugging Face models.
const RANDOM_DEVIATION: f64 = 0.02;

#[derive(Debug)]
struct Entry {
    file: usize,
    stored: String, // its name in the file
    shape: Vec<i64>,
}

impl Weights {
    /// Opens the checkpoint in a Hugging Face directory: `model.safetensors`, or the shards that
    /// `model.safetensors.index.json` names; a path to a single file is opened as by [`Weights::open_file`].
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such place; [`Error::NoWeights`] if neither is in it; [`Error::Format`] if a shard is
    /// missing, or lacks a tensor that the index places in it; the errors of [`Weights::open_file`].
    pub fn open(path: &Path) -> Result<Self> {
        if fs::metadata(path).map_err(io_error("read", path))?.is_file() {
            return Self::open_file(path);
        }
        let single = path.join(WHOLE);
        let index = path.join(INDEX);
        if single.is_file() {
            let weights = Self::open_file(&single)?;
            Ok(Self { tensors: of_decoder(weights.tensors), ..weights })
        } else if index.is_file() {
            Self::open_shards(path, &index)
        } else {
            Err(Error::NoWeights(path.to_owned()))
        }
    }

    /// Opens one file: GGUF if its extension is `gguf`, safetensors otherwise.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Safetensors`] or [`Error::Format`] if its contents do not fit its name.
    pub fn open_file(path: &Path) -> Result<Self> {
        if Gguf::is_named(path) {
            let gguf = Gguf::open(path)?;
            let tensors = gguf.shapes().map(|(name, shape)| entry(0, name, shape)).collect();
            return Ok(Self::of(path, Source::Gguf(Box::new(gguf)), tensors));
        }
        let file = SafetensorsFile::open(path)?;
        let tensors = file.shapes().map(|(name, shape)| entry(0, name, shape)).collect();
        Ok(Self::of(path, Source::Safetensors(vec![file]), tensors))
    }

    /// Random weights without a file, for timing a model: matrices normal with standard deviation 0.02, biases 0, norms 1.
    ///
    /// Each tensor is drawn on loading, in the requested kind and on the requested device, so there is never a second copy. Numbers come
    /// from libtorch's generator of that device ([`tch::manual_seed`]).
    pub fn random(tensors: &[ModelTensor]) -> Self {
        Self::without_file("random weights", Source::Random, tensors)
    }

    /// Weights that take no memory, for a model that is inspected but not run: each tensor is a single zero, expanded to its shape.
    pub fn shapes_only(tensors: &[ModelTensor]) -> Self {
        Self::without_file("shapes", Source::ShapesOnly, tensors)
    }

    fn without_file(path: &str, source: Source, tensors: &[ModelTensor]) -> Self {
        let tensors = tensors.iter().map(|tensor| entry(0, &tensor.name, &tensor.shape)).collect();
        Self::of(path, source, tensors)
    }

    fn of(path: impl Into<PathBuf>, source: Source, tensors: BTreeMap<String, Entry>) -> Self {
        Self {
            path: path.into(),
            source,
            storage: WeightStorage::Dense,
            int8_products: false,
            tensors,
        }
    }

    fn open_shards(directory: &Path, index: &Path) -> Result<Self> {
        let broken = |reason| Error::Format { path: index.to_owned(), reason };
        let weight_map = read_shard_index(index)?;
        let shards: BTreeSet<&String> = weight_map.values().collect();
        let (mut files, mut tensors) = (Vec::new(), BTreeMap::new());
        for (number, shard) in shards.into_iter().enumerate() {
            let path = directory.join(shard);
            if !path.is_file() {
                return Err(broken(format!(
                    "shard {shard} is not beside the index; fetch the missing file"
                )));
            }
            let file = SafetensorsFile::open(&path)?;
            // Tensors outside the index are kept: `check` then reports them as unexpected.
            let is_own = |name: &str| weight_map.get(name).is_none_or(|own| own == shard);
            let own = file.shapes().filter(|(name, _)| is_own(name));
            tensors.extend(own.map(|(name, shape)| entry(number, name, shape)));
            files.push(file);
        }
        if let Some((name, shard)) =
            weight_map.iter().find(|(name, _)| !tensors.contains_key(*name))
        {
            return Err(broken(format!("shard {shard} holds no tensor {name}")));
        }
        Ok(Self::of(directory, Source::Safetensors(files), of_decoder(tensors)))
    }

    /// The source of the tensors.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors' names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of one tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Number of tensors of each stored type, by the format's name for it: `F32`, `BF16`, `Q4_1`. Random weights are not stored.
    pub fn dtypes(&self) -> BTreeMap<String, usize> {
        let dtypes: Vec<String> = match &self.source {
            Source::Safetensors(files) => files.iter().flat_map(SafetensorsFile::dtypes).collect(),
            Source::Gguf(gguf) => gguf.dtypes().collect(),
            Source::Random | Source::ShapesOnly => Vec::new(),
        };
        let mut counts = BTreeMap::new();
        for dtype in dtypes {
            *counts.entry(dtype).or_default() += 1;
        }
        counts
    }

    /// Compares names and shapes with the model's. Names for which `ignore` is true may be there or not.
    ///
    /// # Errors
    /// [`Error::WeightMismatch`] with every missing, unexpected and misshapen tensor.
    pub fn check<'a>(
        &self,
        expected: impl IntoIterator<Item = (&'a str, &'a [i64])>,
        ignore: &dyn Fn(&str) -> bool,
    ) -> Result<()> {
        let expected = BTreeMap::from_iter(expected);
        let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
        for (&name, &shape) in &expected {
            match self.shape(name) {
                None if ignore(name) => {}
                None => missing.push(name.to_owned()),
                Some(found) if found == shape => {}
                Some(found) => misshapen.push((name.to_owned(), found.to_vec(), shape.to_vec())),
            }
        }
        let is_unexpected = |name: &&str| !expected.contains_key(name) && !ignore(name);
        let unexpected: Vec<String> =
            self.names().filter(is_unexpected).map(str::to_owned).collect();
        if missing.is_empty() && unexpected.is_empty() && misshapen.is_empty() {
            return Ok(());
        }
        Err(Error::WeightMismatch { path: self.path.clone(), missing, unexpected, misshapen })
    }

    /// Whether two tensors hold the same numbers.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn are_equal(&self, a: &str, b: &str) -> Result<bool> {
        let (first, second) = (self.entry(a)?, self.entry(b)?);
        if first.shape != second.shape {
            return Ok(false);
        }
        let (options, (rows, columns)) = ((Kind::Float, Device::Cpu), as_matrix(&first.shape));
        for chunk in row_chunks(rows, columns, Device::Cpu) {
            let a = self.load_rows(a, first, chunk, options)?.f_to_kind(Kind::Float)?;
            let b = self.load_rows(b, second, chunk, options)?.f_to_kind(Kind::Float)?;
            if a != b {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sets the storage that [`Decoder::from_weights`](crate::Decoder::from_weights) uses for the matrices of these weights.
    pub fn held_as(self, storage: WeightStorage) -> Self {
        Self { storage, ..self }
    }

    /// Sets whether hidden states are rounded to eight bits where they are multiplied with matrices of four-bit integers, on a CPU with AVX2, if no
    /// gradient is recorded. It takes less time, and products are off by about a hundredth of their size.
    pub fn int8_products(self, are_used: bool) -> Self {
        Self { int8_products: are_used, ..self }
    }

    /// Reads one tensor as `kind` on `device`, in the shape that it has in the file.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] if it is not there, [`Error::Dtype`] if libtorch has no such type, [`Error::Format`] if its
    /// quantised data cannot be read.
    pub fn load(&self, name: &str, kind: Kind, device: Device) -> Result<Tensor> {
        let whole = Tensor::f_empty(self.entry(name)?.shape.as_slice(), (kind, device))?;
        self.load_into(whole, name)
    }

    /// Reads one tensor into `whole`, which has its shape and any strides.
    fn load_into(&self, whole: Tensor, name: &str) -> Result<Tensor> {
        let entry = self.entry(name)?;
        let options = (whole.kind(), whole.device());
        match self.source {
            Source::ShapesOnly => return shape_only(&entry.shape, options),
            Source::Random => return fill_randomly(whole, name),
            Source::Safetensors(_) | Source::Gguf(_) => {}
        }
        let (rows, columns) = as_matrix(&entry.shape);
        let matrix = if whole.dim() == 2 { &whole } else { &whole.f_view([rows, columns])? };
        for (first, n) in row_chunks(rows, columns, options.1) {
            let read = self.load_rows(name, entry, (first, n), options)?;
            matrix.f_narrow(0, first, n)?.f_copy_(&read)?;
        }
        match self.row_order(name)? {
            Some(order) => Ok(whole.f_index_select(0, &order.f_to_device(options.1)?)?),
            None => Ok(whole),
        }
    }

    /// Reads one weight in its storage, for computing in the given kind and on the given device. Embeddings and head (`is_of_tokens`) get
    /// eight bits if other matrices get four.
    pub(crate) fn load_weight(
        &self,
        name: &str,
        is_of_tokens: bool,
        options: (Kind, Device),
    ) -> Result<Weight> {
        let entry = self.entry(name)?;
        let blocks = match entry.shape[..] {
            [rows, columns] => self.load_blocks(name, is_of_tokens, (rows, columns), options)?,
            _ => None,
        };
        let Some(blocks) = blocks else {
            let whole = Tensor::f_empty(&entry.shape, options)?;
            return Ok(Weight::Dense(self.load_into(whole, name)?));
        };
        let blocks = match self.row_order(name)? {
            Some(order) => blocks.permuted(&order)?,
            None => blocks,
        };
        Ok(Weight::Quantised(blocks.with_int8_products(self.int8_products)))
    }

    /// A matrix in blocks, its rows in the file's order; `None` if it is stored as a tensor.
    fn load_blocks(
        &self,
        name: &str,
        is_of_tokens: bool,
        shape: (i64, i64),
        options: (Kind, Device),
    ) -> Result<Option<Quantised>> {
        let format = match (self.storage, &self.source) {
            (WeightStorage::AsStored, Source::Gguf(gguf)) => {
                return gguf.load_blocks(name, shape, options);
            }
            (WeightStorage::Dense | WeightStorage::AsStored, _) => return Ok(None),
            (WeightStorage::Int4, _) if !is_of_tokens => BlockFormat::Q4_0,
            (WeightStorage::Int4 | WeightStorage::Int8, _) => BlockFormat::Q8_0,
        };
        if shape.1 % format.block() != 0 {
            return Ok(None);
        }
        let entry = self.entry(name)?;
        let parts = |first, n| {
            let rows = self.load_rows(name, entry, (first, n), options)?;
            Ok(format.quantise(&rows.f_to_device(options.1)?.f_to_kind(Kind::Float)?))
        };
        Quantised::gather(format, shape, options, parts).map(Some)
    }

    /// Rows of a matrix in the source's order, of any kind, on any device. A tensor of other dimensions counts as a matrix of one row.
    fn load_rows(
        &self,
        name: &str,
        entry: &Entry,
        (first, n): (i64, i64),
        options: (Kind, Device),
    ) -> Result<Tensor> {
        let (_, columns) = as_matrix(&entry.shape);
        match &self.source {
            Source::Safetensors(files) => {
                files[entry.file].load_rows(&entry.stored, (first, n), columns)
            }
            Source::Gguf(gguf) => gguf.load_rows(name, first, n),
            Source::Random => fill_randomly(Tensor::f_empty([n, columns], options)?, name),
            Source::ShapesOnly => shape_only(&[n, columns], options),
        }
    }

    fn row_order(&self, name: &str) -> Result<Option<Tensor>> {
        if let Source::Gguf(gguf) = &self.source { gguf.row_order(name) } else { Ok(None) }
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::UnknownTensor { path: self.path.clone(), name: name.to_owned() })
    }
}

fn as_matrix(shape: &[i64]) -> (i64, i64) {
    match *shape {
        [rows, columns] => (rows, columns),
        _ => (1, shape.iter().product()),
    }
}

/// Fills a tensor of random weights.
fn fill_randomly(mut tensor: Tensor, name: &str) -> Result<Tensor> {
    Ok(match tensor.dim() {
        1 if name.ends_with(".bias") => tensor.f_zero_()?,
        1 => tensor.f_fill_(1.0)?,
        _ => tensor.f_normal_(0.0, RANDOM_DEVIATION)?,
    })
}

/// A single zero, expanded to a shape.
fn shape_only(shape: &[i64], options: (Kind, Device)) -> Result<Tensor> {
    Ok(Tensor::f_zeros([1], options)?.f_expand(shape, false)?)
}

fn entry(file: usize, name: &str, shape: &[i64]) -> (String, Entry) {
    (name.to_owned(), Entry { file, stored: name.to_owned(), shape: shape.to_vec() })
}

/// Renames tensors to the decoder's names: `layers.0.…` of a checkpoint without head, and `language_model.model.layers.0.…` or
/// `model.language_model.layers.0.…` of a multimodal model, become `model.layers.0.…`. Image parts are dropped.
fn of_decoder(tensors: BTreeMap<String, Entry>) -> BTreeMap<String, Entry> {
    const HEAD: &str = "lm_head.";
    const IMAGES: [&str; 2] = ["vision_tower.", "multi_modal_projector."];
    let begins = |start: &str| tensors.keys().any(|name| name.starts_with(start));
    let is_body = begins("layers.") && !begins("model.");
    let sees_images = begins("language_model.") || begins("model.language_model.");
    let rename = |name: &str| {
        if is_body && !name.starts_with(HEAD) {
            return Some(format!("model.{name}"));
        }
        if !sees_images {
            return Some(name.to_owned());
        }
        if let Some(rest) = name.strip_prefix("model.language_model.") {
            return Some(format!("model.{rest}"));
        }
        let name = name.strip_prefix("language_model.").unwrap_or(name);
        let part = name.strip_prefix("model.").unwrap_or(name);
        (!IMAGES.iter().any(|own| part.starts_with(own))).then(|| name.to_owned())
    };
    let named = tensors.keys().filter_map(|name| Some((name.clone(), rename(name)?)));
    let mut names: BTreeMap<String, String> = named.collect();
    let entries = tensors.into_iter();
    entries.filter_map(|(name, entry)| Some((names.remove(&name)?, entry))).collect()
}
