//! Writing a Hugging Face model directory.

use std::path::Path;

use tch::{Device, Kind};

use crate::{Gguf, Result, Weights, atomic_directory, save_safetensors, write_json_in_order};

/// Converts a GGUF file to a Hugging Face directory with f32 weights, which appears whole or not at all.
///
/// Writes `config.json`, `model.safetensors`, `tokenizer.json`, `tokenizer_config.json` (with the chat template) and
/// `generation_config.json`.
///
/// # Errors
/// [`crate::Error::OutputExists`] if `directory` is there and not empty; the errors of [`Gguf::open`] and of its parts;
/// [`crate::Error::Io`] if something cannot be written.
pub fn convert_gguf(file: &Path, directory: &Path) -> Result<()> {
    let gguf = Gguf::open(file)?;
    atomic_directory(directory, |temporary| {
        write_json_in_order(&temporary.join("config.json"), &gguf.config()?)?;
        write_json_in_order(&temporary.join("generation_config.json"), &gguf.generation_config()?)?;
        write_json_in_order(&temporary.join("tokenizer.json"), &gguf.tokenizer_json()?)?;
        write_json_in_order(&temporary.join("tokenizer_config.json"), &gguf.tokenizer_config()?)?;
        let weights = Weights::open_file(file)?;
        let load =
            |name: &str| Ok((name.to_owned(), weights.load(name, Kind::Float, Device::Cpu)?));
        let tensors = weights.names().map(load).collect::<Result<Vec<_>>>()?;
        let metadata = [("format".to_owned(), "pt".to_owned())].into(); // transformers refuses files without it
        save_safetensors(&temporary.join("model.safetensors"), &tensors, Some(metadata))
    })
}
