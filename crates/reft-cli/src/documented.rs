//! The command lines of README and docs are command lines of this program.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::cli::Cli;

/// The documents: all Markdown files of the project but CHANGELOG.md, which speaks of the past.
fn documents() -> Result<Vec<PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = vec![root.join("README.md")];
    for folder in ["docs", "recipes", "python", "examples"] {
        let entries = fs::read_dir(root.join(folder)).with_context(|| format!("no {folder}"))?;
        for entry in entries {
            let path = entry?.path();
            found.extend(Some(path).filter(|path| path.extension().is_some_and(|end| end == "md")));
        }
    }
    // the head of a recipe says how it is run
    for folder in ["recipes", "recipes/das", "recipes/tasks"] {
        for entry in fs::read_dir(root.join(folder))? {
            let path = entry?.path();
            found.extend(
                Some(path).filter(|path| path.extension().is_some_and(|end| end == "toml")),
            );
        }
    }
    Ok(found)
}

/// The shell lines of a document, with continuations after a backslash, and the number of the first line of each.
fn shell_lines(path: &Path) -> Result<Vec<(usize, String)>> {
    let text = fs::read_to_string(path)?;
    let (mut lines, mut is_shell, mut open) = (Vec::new(), false, None);
    let is_recipe = path.extension().is_some_and(|end| end == "toml");
    for (number, line) in text.lines().enumerate() {
        let line = match is_recipe {
            true => match line.strip_prefix('#') {
                Some(comment) => comment.trim(),
                None => continue,
            },
            false => line.trim(),
        };
        if let Some(fence) = line.strip_prefix("```") {
            is_shell = ["sh", "bash", "console"].contains(&fence);
            continue;
        }
        if !is_shell && !is_recipe {
            continue;
        }
        let (first, so_far): (usize, String) = open.take().unwrap_or((number + 1, String::new()));
        match line.strip_suffix('\\') {
            Some(part) => open = Some((first, so_far + part)),
            None => lines.push((first, so_far + line)),
        }
    }
    Ok(lines)
}

/// The arguments that a shell line gives the program, if it calls it: alone, or by a launcher.
fn arguments(line: &str) -> Option<Vec<String>> {
    let words = shlex::split(line)?;
    let launchers = ["torchrun", "srun", "mpirun"];
    let at = words.iter().position(|word| word == "reft")?;
    let begins = at == 0 || launchers.contains(&words[0].as_str()) || words[at - 1].contains('=');
    // three dots stand for arguments that are given elsewhere
    (begins && !line.contains('…')).then(|| {
        let own = words[at..]
            .iter()
            .take_while(|word| !["|", ">", "2>", "&&", ";"].contains(&word.as_str()));
        own.cloned().collect()
    })
}

#[test]
fn every_command_line_of_the_documents_is_one() -> Result<()> {
    let mut read = 0;
    let mut wrong = Vec::new();
    for path in documents()? {
        for (number, line) in shell_lines(&path)? {
            let Some(arguments) = arguments(&line) else { continue };
            read += 1;
            if let Err(error) = Cli::try_parse_from(&arguments)
                && error.use_stderr()
            {
                let said = error.to_string().lines().next().unwrap_or_default().to_owned();
                wrong.push(format!("{}:{number}: {line}\n    {said}", path.display()));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(read > 60, "only {read} command lines were found");
    Ok(())
}

/// The files of this project that a command line names are there; files that a run writes are not.
#[test]
fn the_files_that_a_command_line_reads_are_there() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut missing = Vec::new();
    for path in documents()? {
        for (number, line) in shell_lines(&path)? {
            let words = arguments(&line).unwrap_or_default();
            let own = ["recipes/", "examples/", "tests/", "tools/", "benches/"];
            let named =
                words.iter().filter(|word| own.iter().any(|folder| word.starts_with(folder)));
            for word in named.filter(|word| !root.join(word).exists()) {
                missing.push(format!("{}:{number}: {word}", path.display()));
            }
        }
    }
    ensure!(missing.is_empty(), "{}", missing.join("\n"));
    Ok(())
}

#[test]
fn command_lines_are_found_in_shell() {
    let words = |line: &str| arguments(line).map(|words| words.join("|"));
    assert_eq!(words("reft train --data 'a b' # why").as_deref(), Some("reft|train|--data|a b"));
    assert_eq!(words("torchrun --no-python reft train").as_deref(), Some("reft|train"));
    assert_eq!(words("REFT_X=1 reft devices | head").as_deref(), Some("reft|devices"));
    assert_eq!(words("cargo build --bin reft"), None);
    assert_eq!(words("srun reft train …"), None);
}
