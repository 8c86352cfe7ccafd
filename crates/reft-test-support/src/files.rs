use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::Tensor;

/// The result of a test or of a helper of tests.
pub type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Shape and values of f32 tensors by name.
pub type Values = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A file or folder of `tests/oracle` at the top of the repository.
pub fn oracle(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle")).join(name)
}

/// The text of a file of `tests/oracle`.
///
/// # Errors
/// If it cannot be read.
pub fn oracle_text(name: &str) -> Outcome<String> {
    let path = oracle(name);
    fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// The folder of the demo model. Panics if it is missing.
pub fn demo_model() -> PathBuf {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/SmolLM2-135M-Instruct");
    let dir = PathBuf::from(dir);
    assert!(dir.exists(), "the demo model is not there: run `cargo xtask model`");
    dir
}

/// Names of the folders in a folder, sorted.
///
/// # Errors
/// If it cannot be listed.
pub fn folders(dir: &Path) -> Outcome<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.path().is_dir() {
            names.push(entry.file_name().into_string().map_err(|name| format!("{name:?}"))?);
        }
    }
    names.sort();
    Ok(names)
}

/// The tensors of a safetensors file of `tests/oracle`.
///
/// # Errors
/// If it cannot be read.
pub fn tensors(name: &str) -> Outcome<Tensors> {
    let path = oracle(name);
    let read =
        Tensor::read_safetensors(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(read.into_iter().collect())
}

/// The f32 tensors of a safetensors file, read without libtorch.
///
/// # Errors
/// If it cannot be read.
pub fn values(path: &Path) -> Outcome<Values> {
    let bytes = fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let floats = file.iter().filter(|(_, view)| view.dtype() == Dtype::F32);
    let read = |(name, view): (&str, TensorView)| {
        let (elements, _) = view.data().as_chunks::<4>();
        let values = elements.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        (name.to_owned(), (view.shape().to_vec(), values))
    };
    Ok(floats.map(read).collect())
}

/// Changes the tensors of a safetensors file of f32 tensors in place.
///
/// # Errors
/// If it cannot be read or written.
pub fn change_values(path: &Path, change: impl FnOnce(&mut Values)) -> Outcome {
    let mut all = values(path)?;
    change(&mut all);
    let bytes_of = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> =
        all.iter().map(|(name, (shape, values))| (name, shape, bytes_of(values))).collect();
    let mut views = HashMap::new();
    for (name, shape, bytes) in &bytes {
        views.insert(name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes)?);
    }
    fs::write(path, safetensors::serialize(views, None)?)?;
    Ok(())
}
