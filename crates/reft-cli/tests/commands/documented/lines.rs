//! The command lines that README, docs and recipes print.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;

/// The top of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A command line of a document.
#[derive(Debug, Clone)]
pub struct Line {
    /// The document, from the top of the repository, and the line's number.
    pub place: String,
    /// The words behind `reft`.
    pub words: Vec<String>,
}

/// The documents, in the order in which they are read: all Markdown files of the project but CHANGELOG.md, which speaks of the past, and
/// recipes, whose heads say how they are run. (`recipes/glue` wants a table of other columns for each: see `recipes.rs`.)
fn documents() -> Result<Vec<PathBuf>> {
    let root = root();
    let mut found = vec![root.join("README.md"), root.join("docs/commands.md")];
    for (folder, end) in [
        ("docs", "md"),
        ("python", "md"),
        ("recipes", "md"),
        ("recipes", "toml"),
        ("recipes/das", "toml"),
    ] {
        let mut paths = Vec::new();
        for entry in fs::read_dir(root.join(folder))? {
            let path = entry?.path();
            paths.extend(Some(path).filter(|path| path.extension().is_some_and(|own| own == end)));
        }
        paths.sort();
        found.extend(paths);
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

/// The arguments of the program in a shell line, if the line calls it directly or by a launcher.
fn words(line: &str) -> Option<Vec<String>> {
    let words = shlex::split(line)?;
    let launchers = ["torchrun", "srun", "mpirun"];
    let at = words.iter().position(|word| word == "reft")?;
    let begins = at == 0 || launchers.contains(&words[0].as_str()) || words[at - 1].contains('=');
    // a line with … is incomplete
    (begins && !line.contains(" …")).then(|| {
        let ends = ["|", ">", "2>", "&&", ";"];
        let own = words[at + 1..].iter().take_while(|word| !ends.contains(&word.as_str()));
        own.cloned().collect()
    })
}

/// All command lines, each once.
pub fn all() -> Result<Vec<Line>> {
    let mut lines: Vec<Line> = Vec::new();
    for path in documents()? {
        for (number, line) in shell_lines(&path)? {
            let Some(words) = words(&line) else { continue };
            if lines.iter().all(|line| line.words != words) {
                let document = path.strip_prefix(root())?.display();
                lines.push(Line { place: format!("{document}:{number}"), words });
            }
        }
    }
    Ok(lines)
}

#[test]
fn command_lines_are_found_in_shell() {
    let words = |line: &str| words(line).map(|words| words.join("|"));
    assert_eq!(words("reft train --data 'a b' # why").as_deref(), Some("train|--data|a b"));
    assert_eq!(words("torchrun --no-python reft train").as_deref(), Some("train"));
    assert_eq!(words("REFT_X=1 reft devices | head").as_deref(), Some("devices"));
    assert_eq!(words("reft steer --prompt '…'").as_deref(), Some("steer|--prompt|…"));
    assert_eq!(words("cargo build --bin reft"), None);
    assert_eq!(words("srun reft train …"), None);
}
