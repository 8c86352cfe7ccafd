//! `cargo xtask oracle --check`: do the Python reference systems still say what tests/oracle says?

mod difference;
mod environment;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::workspace::{self, Workspace};
use crate::{command, model, setup};

const GENERATOR: &str = "tools/oracle/make_oracle.py";
const ORACLE: &str = "tests/oracle";

/// Runs the generator into a folder that is thrown away, and compares what it wrote with `tests/oracle`.
pub fn check(workspace: &Workspace) -> Result<()> {
    setup::ready(workspace)?;
    model::ready(workspace)?;
    let cache = workspace::cache_dir()?;
    let python = environment::ready(&cache)?;
    let fresh = tempfile::tempdir().context("cannot create a temporary folder")?;
    eprintln!("running {GENERATOR}");
    let mut generate = std::process::Command::new(python);
    generate.current_dir(workspace.root()).arg(GENERATOR).arg(fresh.path()).arg(workspace.model());
    command::run_as_progress(&mut generate)?;
    let kept = workspace.root().join(ORACLE);
    let mut differences = Vec::new();
    let files = files(&kept)?;
    for file in &files {
        differences.extend(difference::of_file(file, &kept, fresh.path())?);
    }
    for file in self::files(fresh.path())?.iter().filter(|file| !files.contains(file)) {
        differences.push(format!("{}: written by the generator, but not kept", file.display()));
    }
    for difference in &differences {
        eprintln!("oracle: {difference}");
    }
    if !differences.is_empty() {
        bail!("{ORACLE} and a new run of {GENERATOR} differ in {} places", differences.len());
    }
    eprintln!("oracle: {} files say the same as a new run of {GENERATOR}", files.len());
    Ok(())
}

/// Every oracle file below `root`, sorted, relative to it. Prose is not one.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in
            fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_none_or(|extension| extension != "md") {
                files.push(path.strip_prefix(root)?.to_owned());
            }
        }
    }
    files.sort();
    Ok(files)
}
