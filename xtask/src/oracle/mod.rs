//! `cargo xtask oracle`: do the Python reference systems still say what tests/oracle says, and of published models what this program says?

mod difference;
pub mod real;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::workspace::{self, Workspace};
use crate::{command, model, python_environment, setup};

/// The generators: `make_*.py`. Each says in its first lines which folder it writes and which Python it needs.
const GENERATORS: &str = "tools/oracle";
const ORACLE: &str = "tests/oracle";

/// A generator.
#[derive(Debug, PartialEq, Eq)]
struct Generator {
    script: PathBuf,
    /// The folder in `tests/oracle` that it writes; `.`: all that no other does.
    writes: String,
    /// The Python that it needs: `reference`, `newer` or `today`.
    python: String,
}

impl Generator {
    /// Reads the lines `writes: …` and `python: …` of a script's first lines.
    fn read(script: &Path, text: &str) -> Result<Self> {
        let field = |name: &str| {
            let mut lines = text.lines().take(20);
            let value = lines.find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
            let missing = || format!("{} has no line `{name}: …` at its top", script.display());
            value.map(str::to_owned).with_context(missing)
        };
        Ok(Self { script: script.to_owned(), writes: field("writes")?, python: field("python")? })
    }
}

/// Every generator, the one that makes what others read first.
fn generators(root: &Path) -> Result<Vec<Generator>> {
    let folder = root.join(GENERATORS);
    let mut generators = Vec::new();
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("make_") && name.ends_with(".py") {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            generators.push(Generator::read(path.strip_prefix(root)?, &text)?);
        }
    }
    generators.sort_by_key(|generator| (generator.writes != ".", generator.script.clone()));
    Ok(generators)
}

/// Runs the generators into a folder that is thrown away, and compares what they wrote with `tests/oracle`.
pub fn check(workspace: &Workspace) -> Result<()> {
    setup::ready(workspace)?;
    model::ready(workspace)?;
    let environment = python_environment::ready(&workspace::cache_dir()?)?;
    let fresh = tempfile::tempdir().context("cannot create a temporary folder")?;
    for Generator { script, writes, python } in generators(workspace.root())? {
        eprintln!("running {}", script.display());
        let mut command = environment.python(&python)?;
        command.current_dir(workspace.root()).arg(script).arg(fresh.path().join(&writes));
        if writes == "." {
            command.arg(workspace.model());
        }
        command::run_as_progress(&mut command)?;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_generator_says_what_it_writes_and_with_what() -> Result<()> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let generators = generators(&root)?;
        assert_eq!(generators[0].writes, ".");
        for Generator { script, writes, python } in &generators {
            assert!(
                root.join(ORACLE).join(writes).is_dir(),
                "{} writes {writes}",
                script.display()
            );
            assert!(python_environment::NAMES.contains(&python.as_str()), "{python}");
        }
        let silent = Generator::read(Path::new("make_x.py"), "import torch\n");
        assert!(silent.is_err_and(|error| error.to_string().contains("`writes: …`")));
        Ok(())
    }
}
