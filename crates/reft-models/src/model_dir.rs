//! Writing a Hugging Face model directory.

use std::fs;
use std::path::Path;

use serde_json::Value as Json;
use tch::{Device, Kind};

use crate::atomic_file::{atomic_directory, io_error};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::safetensors_file::save_safetensors;
use crate::weights::Weights;

/// Converts a GGUF file to a Hugging Face directory with f32 weights, which appears whole or not at all.
///
/// Writes `config.json`, `model.safetensors`, `tokenizer.json`, `tokenizer_config.json` (with the chat template) and
/// `generation_config.json`.
///
/// # Errors
/// [`Error::OutputExists`] if `directory` is there and not empty; the errors of [`Gguf::open`] and of its parts;
/// [`Error::Io`] if something cannot be written.
pub fn convert_gguf(file: &Path, directory: &Path) -> Result<()> {
    let gguf = Gguf::open(file)?;
    atomic_directory(directory, |temporary| {
        write_json(&temporary.join("config.json"), &gguf.config()?)?;
        write_json(&temporary.join("generation_config.json"), &gguf.generation_config()?)?;
        write_json(&temporary.join("tokenizer.json"), &gguf.tokenizer_json()?)?;
        write_json(&temporary.join("tokenizer_config.json"), &gguf.tokenizer_config()?)?;
        let weights = Weights::open_file(file)?;
        let load = |name: &str| weights.load(name, Kind::Float, Device::Cpu);
        let tensors = weights
            .names()
            .map(|name| Ok((name.to_owned(), load(name)?)))
            .collect::<Result<Vec<_>>>()?;
        let metadata = [("format".to_owned(), "pt".to_owned())].into(); // transformers refuses files without it
        save_safetensors(&temporary.join("model.safetensors"), &tensors, Some(metadata))
    })
}

fn write_json(path: &Path, value: &Json) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|source| Error::Json { path: path.to_owned(), source })?;
    text.push('\n');
    fs::write(path, text).map_err(io_error("write", path))
}
