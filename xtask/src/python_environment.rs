//! The Python environment of the reference systems, outside the tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{command, workspace};

/// Versions that the kept oracle files were made with, and of what pyreft and pyvene import besides.
const REQUIREMENTS: [&str; 7] = [
    "torch==2.11.0",
    "transformers==4.49.0",
    "peft==0.14.0",
    "numpy==2.3.5",
    "datasets==3.6.0",
    "matplotlib==3.10.8",
    "huggingface-hub==0.36.2",
];

/// pyreft's metadata asks for transformers 4.45.1 and for notebooks; it works without either.
const WITHOUT_DEPENDENCIES: [&str; 2] = ["pyreft==0.1.0", "pyvene==0.1.8"];

/// Qwen3 is younger than the transformers that pyreft works with, so this one lies in a folder of its own, before the other.
const NEWER: [&str; 1] = ["transformers==4.51.3"];

/// Python with the reference systems.
#[derive(Debug)]
pub struct Environment {
    interpreter: PathBuf,
    newer: PathBuf,
}

impl Environment {
    /// The interpreter with the versions that pyreft works with.
    pub fn python(&self) -> Command {
        let mut python = Command::new(&self.interpreter);
        // What a set is written as depends on the hash seed.
        python
            .env("PYTHONHASHSEED", "0")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env_remove("PYTHONPATH");
        python
    }

    /// The same with the newer transformers.
    pub fn newer_python(&self) -> Command {
        let mut python = self.python();
        python.env("PYTHONPATH", &self.newer);
        python
    }
}

/// The environment, made in `cache` unless it is there.
pub fn ready(cache: &Path) -> Result<Environment> {
    let environment = cache.join("oracle-python");
    let interpreter: PathBuf = environment.join("bin/python");
    let stamp = environment.join("installed.txt");
    let newer = environment.join("newer");
    let wanted = [&REQUIREMENTS[..], &WITHOUT_DEPENDENCIES, &NEWER].concat().join("\n");
    let _lock = workspace::exclusive(cache)?;
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(Environment { interpreter, newer });
    }
    eprintln!("installing the reference systems in {} (several GB)", environment.display());
    let mut venv = command::python()?;
    command::run_as_progress(venv.args(["-m", "venv", "--clear"]).arg(&environment))
        .context("cannot make a Python environment (Debian: apt install python3-venv)")?;
    let pip = |options: &[&str], requirements: &[&str]| {
        let mut pip = Command::new(&interpreter);
        pip.env_remove("PYTHONPATH").args([
            "-m",
            "pip",
            "install",
            "--no-input",
            "--disable-pip-version-check",
        ]);
        command::run_as_progress(pip.args(options).args(requirements))
    };
    pip(&[], &REQUIREMENTS)?;
    pip(&["--no-deps"], &WITHOUT_DEPENDENCIES)?;
    let target = newer.to_str().context("the path of the cache folder is not UTF-8")?;
    pip(&["--no-deps", "--target", target], &NEWER)?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(Environment { interpreter, newer })
}
