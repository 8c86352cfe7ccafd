//! The Python environment of the reference systems, outside the tree.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{command, workspace};

/// The versions with which the kept oracle files were made, further imports of pyreft and pyvene, and packages that read and write data files.
const REQUIREMENTS: [&str; 10] = [
    "torch==2.11.0",
    "transformers==4.49.0",
    "peft==0.14.0",
    "numpy==2.3.5",
    "datasets==3.6.0",
    "matplotlib==3.10.8",
    "huggingface-hub==0.36.2",
    "pandas==2.3.3",
    "pyarrow==22.0.0",
    "zstandard==0.25.0",
];

/// pyreft's metadata asks for transformers 4.45.1 and for notebooks; it works without either.
const WITHOUT_DEPENDENCIES: [&str; 2] = ["pyreft==0.1.0", "pyvene==0.1.8"];

/// Qwen3 is younger than the transformers that pyreft works with. So this version is in a separate folder that is searched first.
const NEWER: [&str; 1] = ["transformers==4.51.3"];

/// Today's PEFT and transformers with their imports besides torch and numpy, and packages that write GGUF files and vocabularies; in a
/// separate folder too.
const TODAY: [&str; 19] = [
    "peft==0.21.2",
    "transformers==5.24.0",
    "huggingface-hub==2.4.0",
    "tokenizers==0.23.3",
    "safetensors==0.8.0",
    "accelerate==1.15.0",
    "httpx2==2.16.2",
    "httpcore2==2.16.2",
    "truststore==0.10.5",
    "h11==0.16.0",
    "anyio==4.16.0",
    "click==8.5.1",
    "annotated-doc==0.0.7",
    "typer==0.29.2",
    "shellingham==1.5.4",
    "rich==15.0.0",
    "hf-xet==1.8.0",
    "sentencepiece==0.2.3",
    "gguf==0.19.0",
];

/// Packages for preference learning on top of today's, with their imports, and packages for classification metrics; in a separate folder too.
const TRL: [&str; 11] = [
    "trl==1.16.0",
    "datasets==5.2.0",
    "dill==0.4.1",
    "multiprocess==0.70.19",
    "xxhash==4.1.0",
    "scikit-learn==1.9.1",
    "scipy==1.17.1",
    "joblib==1.6.0",
    "cloudpickle==3.1.3",
    "threadpoolctl==3.8.0",
    "narwhals==2.29.0",
];

/// Today's PEFT, transformers and torch, in a separate environment: an environment cannot have two versions of torch.
const NEWEST: [&str; 4] = ["torch==2.15.0", "transformers==5.24.0", "peft==0.21.2", "numpy==2.3.5"];

/// The Pythons that a script can ask for.
pub const NAMES: [&str; 4] = ["reference", "newer", "today", "trl"];

/// Python with the reference systems.
#[derive(Debug)]
pub struct Environment {
    interpreter: PathBuf,
    /// Folders that come before the installed packages: one for each of [`NAMES`] but the first.
    folders: [PathBuf; 3],
}

impl Environment {
    /// One of [`NAMES`]: the versions that pyreft works with, the transformers that knows Qwen3, PEFT and transformers of today, or these with
    /// TRL.
    pub fn python(&self, name: &str) -> Result<Command> {
        let mut python = Command::new(&self.interpreter);
        // The order in which a set is written depends on the hash seed.
        python
            .env("PYTHONHASHSEED", "0")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env_remove("PYTHONPATH");
        let known = NAMES.iter().position(|known| *known == name);
        match known.with_context(|| format!("no Python {name:?}, use one of {NAMES:?}"))? {
            0 => {}
            3 => {
                _ = python.env("PYTHONPATH", env::join_paths([&self.folders[2], &self.folders[1]])?)
            }
            folder => _ = python.env("PYTHONPATH", &self.folders[folder - 1]),
        }
        Ok(python)
    }
}

/// The environment in `cache`, which is made if it is missing.
pub fn ready(cache: &Path) -> Result<Environment> {
    let environment = cache.join("oracle-python");
    let folders = ["newer", "today", "trl"].map(|name| environment.join(name));
    let wanted = [&REQUIREMENTS[..], &WITHOUT_DEPENDENCIES, &NEWER, &TODAY, &TRL].concat();
    let interpreter = made(cache, &environment, &wanted, |interpreter| {
        pip(interpreter, &[], &REQUIREMENTS)?;
        pip(interpreter, &["--no-deps"], &WITHOUT_DEPENDENCIES)?;
        for (folder, requirements) in folders.iter().zip([&NEWER[..], &TODAY, &TRL]) {
            let target = folder.to_str().context("the path of the cache folder is not UTF-8")?;
            pip(interpreter, &["--no-deps", "--target", target], requirements)?;
        }
        Ok(())
    })?;
    Ok(Environment { interpreter, folders })
}

/// A Python with PEFT, transformers and torch of today, made in `cache` if it is missing.
pub fn newest(cache: &Path) -> Result<Command> {
    let environment = cache.join("newest-python");
    let interpreter =
        made(cache, &environment, &NEWEST, |interpreter| pip(interpreter, &[], &NEWEST))?;
    let mut python = Command::new(interpreter);
    python.env("PYTHONDONTWRITEBYTECODE", "1").env_remove("PYTHONPATH");
    Ok(python)
}

/// The interpreter of a virtual environment. It is made, and `install` fills it, unless it already has what is wanted.
fn made(
    cache: &Path,
    environment: &Path,
    wanted: &[&str],
    install: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let interpreter = environment.join("bin/python");
    let (stamp, wanted) = (environment.join("installed.txt"), wanted.join("\n"));
    let _lock = workspace::exclusive(cache)?;
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(interpreter);
    }
    eprintln!("installing the reference systems in {} (several GB)", environment.display());
    let mut venv = command::python()?;
    command::run_as_progress(venv.args(["-m", "venv", "--clear"]).arg(environment))
        .context("cannot make a Python environment (Debian: apt install python3-venv)")?;
    install(&interpreter)?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(interpreter)
}

fn pip(interpreter: &Path, options: &[&str], requirements: &[&str]) -> Result<()> {
    let mut pip = Command::new(interpreter);
    pip.env_remove("PYTHONPATH").args([
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
    ]);
    command::run_as_progress(pip.args(options).args(requirements))
}
