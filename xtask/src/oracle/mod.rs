//! `cargo xtask oracle`: checks that the Python reference systems still compute the numbers of tests/oracle, and with `--real` that they
//! agree with this program on published models.

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
    /// The folder in `tests/oracle` that it writes; `.`: all files that no other generator writes.
    writes: String,
    /// The Python that it needs: `reference`, `newer` or `today`.
    python: String,
    /// The folders of other generators that it reads, besides the files of the generator `.`, which all may read.
    reads: Vec<String>,
}

impl Generator {
    /// Reads the lines `writes: …`, `python: …` and, if there is one, `reads: …` of a script's first lines.
    fn read(script: &Path, text: &str) -> Result<Self> {
        let line = |name: &str| {
            let mut lines = text.lines().take(20);
            lines.find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "))
        };
        let field = |name: &str| {
            let missing = || format!("{} has no line `{name}: …` at its top", script.display());
            line(name).map(str::to_owned).with_context(missing)
        };
        let reads = line("reads").into_iter().flat_map(|all| all.split(", ")).map(str::to_owned);
        Ok(Self {
            script: script.to_owned(),
            writes: field("writes")?,
            python: field("python")?,
            reads: reads.collect(),
        })
    }
}

/// The generators, ordered so that each runs after the generators whose folders it reads.
fn in_order(mut left: Vec<Generator>) -> Result<Vec<Generator>> {
    let mut ordered: Vec<Generator> = Vec::new();
    while !left.is_empty() {
        let is_written = |name: &String| ordered.iter().any(|earlier| earlier.writes == *name);
        let next = left.iter().position(|generator| generator.reads.iter().all(is_written));
        let Some(next) = next else {
            let names: Vec<_> = left.iter().map(|own| own.script.display().to_string()).collect();
            bail!("{} read files that no generator before them writes", names.join(", "));
        };
        ordered.push(left.remove(next));
    }
    Ok(ordered)
}

/// Every generator, in order; the generator `.`, whose files all others may read, is the first.
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
    in_order(generators)
}

/// Runs the generators into a temporary folder, and compares their files with `tests/oracle`.
pub fn check(workspace: &Workspace) -> Result<()> {
    setup::ready(workspace)?;
    model::ready(workspace)?;
    let environment = python_environment::ready(&workspace::cache_dir()?)?;
    let fresh = tempfile::tempdir().context("cannot create a temporary folder")?;
    let mut differences = Vec::new();
    for Generator { script, writes, python, .. } in generators(workspace.root())? {
        eprintln!("running {}", script.display());
        let mut command = environment.python(&python)?;
        command.current_dir(workspace.root()).arg(script).arg(fresh.path().join(&writes));
        if writes == "." {
            command.arg(workspace.model());
        }
        // missing files differ, too
        differences.extend(command::run_as_progress(&mut command).err().map(|e| format!("{e:#}")));
    }
    let kept = workspace.root().join(ORACLE);
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
        bail!("{ORACLE} and the generators' new files differ in {} places", differences.len());
    }
    eprintln!("oracle: the generators still write the {} files in {ORACLE}", files.len());
    Ok(())
}

/// Every oracle file below `root`, sorted, relative to it. Prose files are left out.
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
        for Generator { script, writes, python, .. } in &generators {
            assert!(
                root.join(ORACLE).join(writes).is_dir(),
                "{} writes {writes}",
                script.display()
            );
            assert!(python_environment::NAMES.contains(&python.as_str()), "{python}");
        }
        for (at, Generator { script, reads, .. }) in generators.iter().enumerate() {
            let earlier: Vec<&str> =
                generators[..at].iter().map(|own| own.writes.as_str()).collect();
            for name in reads {
                assert!(earlier.contains(&name.as_str()), "{} reads {name}", script.display());
            }
        }
        let places = ["make_classification.py", "make_bitfit.py"]
            .map(|name| generators.iter().position(|generator| generator.script.ends_with(name)));
        assert!(places[0].is_some() && places[0] < places[1], "{places:?}");
        let of_none = "writes: a\npython: today\nreads: b, c\n";
        let of_none = Generator::read(Path::new("make_a.py"), of_none)?;
        assert_eq!(of_none.reads, ["b", "c"]);
        assert!(
            in_order(vec![of_none]).is_err_and(|error| error.to_string().contains("make_a.py"))
        );
        let silent = Generator::read(Path::new("make_x.py"), "import torch\n");
        assert!(silent.is_err_and(|error| error.to_string().contains("`writes: …`")));
        Ok(())
    }
}
