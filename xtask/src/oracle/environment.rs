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

/// The interpreter of the environment, made in `cache` unless it is there.
pub fn ready(cache: &Path) -> Result<PathBuf> {
    let environment = cache.join("oracle-python");
    let interpreter: PathBuf = environment.join("bin/python");
    let stamp = environment.join("installed.txt");
    let wanted = [&REQUIREMENTS[..], &WITHOUT_DEPENDENCIES].concat().join("\n");
    let _lock = workspace::exclusive(cache)?;
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(interpreter);
    }
    eprintln!("installing the reference systems in {} (several GB)", environment.display());
    let mut venv = command::python()?;
    command::run_as_progress(venv.args(["-m", "venv", "--clear"]).arg(&environment))
        .context("cannot make a Python environment (Debian: apt install python3-venv)")?;
    let pip = |options: &[&str], requirements: &[&str]| {
        let mut pip = Command::new(&interpreter);
        pip.args(["-m", "pip", "install", "--no-input", "--disable-pip-version-check"]);
        command::run_as_progress(pip.args(options).args(requirements))
    };
    pip(&[], &REQUIREMENTS)?;
    pip(&["--no-deps"], &WITHOUT_DEPENDENCIES)?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(interpreter)
}
