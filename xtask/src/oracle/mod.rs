//! `cargo xtask oracle --check`: do the Python reference systems still say what tests/oracle says?

mod difference;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{self, Workspace};
use crate::{command, model, python_environment, setup};

/// The generators of everything in `ORACLE`; the second one's part is `FAMILIES`, the third one's `PEFT_MORE`.
const MAKE_ORACLE: &str = "tools/oracle/make_oracle.py";
const MAKE_FAMILIES: &str = "tools/oracle/make_families.py";
const MAKE_PEFT: &str = "tools/oracle/make_peft.py";
const ORACLE: &str = "tests/oracle";
const FAMILIES: &str = "families";
const PEFT_MORE: &str = "peft_more";

/// Runs the generators into a folder that is thrown away, and compares what they wrote with `tests/oracle`.
pub fn check(workspace: &Workspace) -> Result<()> {
    setup::ready(workspace)?;
    model::ready(workspace)?;
    let environment = python_environment::ready(&workspace::cache_dir()?)?;
    let fresh = tempfile::tempdir().context("cannot create a temporary folder")?;
    let run = |python: &mut Command, script: &str, arguments: &[&Path]| {
        eprintln!("running {script}");
        command::run_as_progress(python.current_dir(workspace.root()).arg(script).args(arguments))
    };
    run(&mut environment.python(), MAKE_ORACLE, &[fresh.path(), &workspace.model()])?;
    run(&mut environment.newer_python(), MAKE_FAMILIES, &[&fresh.path().join(FAMILIES)])?;
    run(&mut environment.python(), MAKE_PEFT, &[&fresh.path().join(PEFT_MORE)])?;
    let kept = workspace.root().join(ORACLE);
    let mut differences = Vec::new();
    let files = files(&kept)?;
    for file in &files {
        differences.extend(difference::of_file(file, &kept, fresh.path())?);
    }
    for file in self::files(fresh.path())?.iter().filter(|file| !files.contains(file)) {
        differences.push(format!("{}: written by a generator, but not kept", file.display()));
    }
    for difference in &differences {
        eprintln!("oracle: {difference}");
    }
    if !differences.is_empty() {
        bail!("{ORACLE} and what the generators write now differ in {} places", differences.len());
    }
    eprintln!("oracle: the generators still write what the {} files in {ORACLE} say", files.len());
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
