//! The tensors of a checkpoint, by name, read when they are asked for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::atomic_file::io_error;
use crate::config::DecoderConfig;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::safetensors_file::SafetensorsFile;

/// Named tensors of a checkpoint: a safetensors file, a sharded set of them, a GGUF file, or none at all ([`Weights::random`]).
///
/// Opening reads headers only. [`Weights::load`] copies one tensor out of the memory map (GGUF: dequantises it; random: draws it).
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    source: Source,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
enum Source {
    Safetensors(Vec<SafetensorsFile>),
    Gguf(Box<Gguf>),
    Random,
}

/// Standard deviation of random matrices: what Hugging Face models start from.
const RANDOM_DEVIATION: f64 = 0.02;

#[derive(Debug)]
struct Entry {
    file: usize,
    shape: Vec<i64>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// Reads which shard holds each tensor from `model.safetensors.index.json`. Shards are plain file names.
pub(crate) fn read_shard_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(path).map_err(io_error("read", path))?;
    let ShardIndex { weight_map } = serde_json::from_str(&text)
        .map_err(|source| Error::Json { path: path.to_owned(), source })?;
    for shard in weight_map.values() {
        if Path::new(shard).file_name() != Some(shard.as_ref()) {
            let reason =
                format!("shard {shard:?} is not a plain file name; shards lie beside the index");
            return Err(Error::Format { path: path.to_owned(), reason });
        }
    }
    Ok(weight_map)
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
        let single = path.join("model.safetensors");
        let index = path.join("model.safetensors.index.json");
        if single.is_file() {
            Self::open_file(&single)
        } else if index.is_file() {
            Self::open_shards(path, &index)
        } else {
            Err(Error::NoWeights { path: path.to_owned() })
        }
    }

    /// Opens one file: GGUF if its name ends so, safetensors otherwise.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Safetensors`] or [`Error::Format`] if it is not what its name says.
    pub fn open_file(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            return Ok(Self::from_gguf(Gguf::open(path)?));
        }
        let file = SafetensorsFile::open(path)?;
        let tensors = file.shapes().map(|(name, shape)| entry(0, name, shape)).collect();
        Ok(Self { path: path.to_owned(), source: Source::Safetensors(vec![file]), tensors })
    }

    /// The tensors of an open GGUF file, under their Hugging Face names.
    pub fn from_gguf(gguf: Gguf) -> Self {
        let tensors = gguf.shapes().map(|(name, shape)| entry(0, name, shape)).collect();
        Self { path: gguf.path().to_owned(), source: Source::Gguf(Box::new(gguf)), tensors }
    }

    /// Weights that no file holds, for a model that is timed and not asked anything: matrices normal with standard deviation 0.02,
    /// biases 0, norms 1.
    ///
    /// Each is made when it is loaded, in the kind and on the device asked for, so there is never a second copy. Numbers come from
    /// libtorch's generator of that device ([`tch::manual_seed`]).
    pub fn random(config: &DecoderConfig) -> Self {
        let shapes = config.tensor_shapes();
        let tensors = shapes.iter().map(|(name, shape)| entry(0, name, shape)).collect();
        Self { path: "random weights".into(), source: Source::Random, tensors }
    }

    fn open_shards(directory: &Path, index: &Path) -> Result<Self> {
        let broken = |reason| Error::Format { path: index.to_owned(), reason };
        let weight_map = read_shard_index(index)?;
        let mut numbers = BTreeMap::new();
        let mut files = Vec::new();
        for shard in weight_map.values() {
            if numbers.contains_key(shard) {
                continue;
            }
            let path = directory.join(shard);
            if !path.is_file() {
                return Err(broken(format!(
                    "shard {shard} is not beside the index; fetch the missing file"
                )));
            }
            numbers.insert(shard, files.len());
            files.push(SafetensorsFile::open(&path)?);
        }
        let mut tensors = BTreeMap::new();
        for (name, shard) in &weight_map {
            let number = numbers[shard];
            let shape = files[number]
                .shape(name)
                .ok_or_else(|| broken(format!("shard {shard} holds no tensor {name}")))?;
            tensors.extend([entry(number, name, shape)]);
        }
        // Tensors outside the index are kept: `check` then reports them as unexpected.
        for (number, file) in files.iter().enumerate() {
            for (name, shape) in file.shapes() {
                let (name, entry) = entry(number, name, shape);
                tensors.entry(name).or_insert(entry);
            }
        }
        Ok(Self { path: directory.to_owned(), source: Source::Safetensors(files), tensors })
    }

    /// Where the tensors come from.
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
        let mut counts = BTreeMap::new();
        let mut count = |dtype: String| *counts.entry(dtype).or_default() += 1;
        match &self.source {
            Source::Safetensors(files) => {
                files.iter().flat_map(SafetensorsFile::dtypes).for_each(&mut count);
            }
            Source::Gguf(gguf) => gguf.dtypes().for_each(&mut count),
            Source::Random => {}
        }
        counts
    }

    /// Compares names and shapes with those that a model needs. Names for which `ignore` is true may be there or not.
    ///
    /// # Errors
    /// [`Error::WeightMismatch`] with every missing, unexpected and misshapen tensor.
    pub fn check(
        &self,
        expected: &[(String, Vec<i64>)],
        ignore: &dyn Fn(&str) -> bool,
    ) -> Result<()> {
        let expected: BTreeMap<&str, &[i64]> =
            expected.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        let mut missing = Vec::new();
        let mut misshapen = Vec::new();
        for (&name, &shape) in &expected {
            match self.shape(name) {
                None if ignore(name) => {}
                None => missing.push(name.to_owned()),
                Some(found) if found == shape => {}
                Some(found) => misshapen.push((name.to_owned(), found.to_vec(), shape.to_vec())),
            }
        }
        let unexpected: Vec<String> = self
            .names()
            .filter(|name| !expected.contains_key(name) && !ignore(name))
            .map(str::to_owned)
            .collect();
        if missing.is_empty() && unexpected.is_empty() && misshapen.is_empty() {
            return Ok(());
        }
        Err(Error::WeightMismatch { path: self.path.clone(), missing, unexpected, misshapen })
    }

    /// Reads one tensor as `kind` on `device`.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`] if it is not there, [`Error::Dtype`] if libtorch has no such type, [`Error::Format`] if its
    /// quantised data cannot be read.
    pub fn load(&self, name: &str, kind: Kind, device: Device) -> Result<Tensor> {
        let entry = self.tensors.get(name).ok_or_else(|| Error::UnknownTensor {
            path: self.path.clone(),
            name: name.to_owned(),
        })?;
        let tensor = match &self.source {
            Source::Safetensors(files) => files[entry.file].load(name)?,
            Source::Gguf(gguf) => gguf.load(name)?,
            Source::Random => random_tensor(name, &entry.shape, kind, device)?,
        };
        Ok(tensor.f_to_kind(kind)?.f_to_device(device)?)
    }
}

fn random_tensor(name: &str, shape: &[i64], kind: Kind, device: Device) -> Result<Tensor> {
    let options = (kind, device);
    Ok(match shape.len() {
        1 if name.ends_with(".bias") => Tensor::f_zeros(shape, options)?,
        1 => Tensor::f_ones(shape, options)?,
        _ => Tensor::f_empty(shape, options)?.f_normal_(0.0, RANDOM_DEVIATION)?,
    })
}

fn entry(file: usize, name: &str, shape: &[i64]) -> (String, Entry) {
    (name.to_owned(), Entry { file, shape: shape.to_vec() })
}
