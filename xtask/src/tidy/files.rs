//! Sizes, names and contents of the project's files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ignore::WalkBuilder;

/// A Rust file longer than this holds more than one concept.
const MAX_LINES: usize = 800;

/// Most files in one folder of a crate's source. `mod.rs`, `lib.rs` and `main.rs` stand for the folder itself and do not count.
const MAX_FILES: usize = 12;

/// Names that say nothing about the contents.
const EMPTY_NAMES: [&str; 7] = ["utils", "util", "common", "misc", "helpers", "helper", "base"];

/// Folders that exist on one machine only.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/", "home/"), concat!("/", "root/"), concat!("/", "work/"), concat!("/", "Users/")];

/// Hosts that no file may name: registries are reached through the user's own pip and Cargo, which know their mirror.
const REGISTRY_HOSTS: [&str; 6] = [
    concat!("pypi", ".org"),
    concat!("files.pythonhosted", ".org"),
    concat!("download.pytorch", ".org"),
    concat!("static.crates", ".io"),
    concat!("index.crates", ".io"),
    concat!("registry.npmjs", ".org"),
];

/// Every file that is not git-ignored, sorted, relative to `root`. Does not need git, so a source archive can be checked too.
pub fn project_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let walk = WalkBuilder::new(root)
        .standard_filters(false)
        .git_ignore(true)
        .require_git(false)
        .filter_entry(|entry| entry.file_name() != ".git")
        .build();
    for entry in walk {
        let entry = entry.context("cannot list the project's files")?;
        if entry.file_type().is_some_and(|kind| kind.is_file()) {
            files.push(entry.path().strip_prefix(root)?.to_owned());
        }
    }
    files.sort();
    Ok(files)
}

/// Findings about `files`, which are relative to `root`.
pub fn check(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in files {
        let bytes =
            fs::read(root.join(file)).with_context(|| format!("cannot read {}", file.display()))?;
        let text = std::str::from_utf8(&bytes).ok();
        if file.extension().is_some_and(|extension| extension == "rs") {
            findings.extend(empty_name(file));
            let lines = text.map_or(0, |text| text.lines().count());
            if lines > MAX_LINES {
                findings.push(format!(
                    "{} has {lines} lines, at most {MAX_LINES}: split it",
                    file.display()
                ));
            }
        }
        for (number, line) in text.into_iter().flat_map(str::lines).enumerate() {
            findings.extend(
                foreign(line).map(|what| format!("{}:{}: {what}", file.display(), number + 1)),
            );
        }
    }
    findings.extend(full_folders(files));
    Ok(findings)
}

fn full_folders(files: &[PathBuf]) -> impl Iterator<Item = String> {
    let mut counts: BTreeMap<&Path, usize> = BTreeMap::new();
    for file in files {
        let is_source = file.starts_with("crates") && file.iter().nth(2) == Some("src".as_ref());
        let is_folder = ["mod.rs", "lib.rs", "main.rs"].iter().any(|name| file.ends_with(name));
        if let Some(folder) = file.parent()
            && is_source
            && file.extension() == Some("rs".as_ref())
            && !is_folder
        {
            *counts.entry(folder).or_default() += 1;
        }
    }
    let full = counts.into_iter().filter(|(_, count)| *count > MAX_FILES);
    full.map(|(folder, count)| {
        format!("{} holds {count} files, at most {MAX_FILES}: make subfolders", folder.display())
    })
}

/// A module is named by its file, and `mod.rs` by its folder.
fn empty_name(file: &Path) -> Option<String> {
    let stem = file.file_stem()?.to_str()?;
    let name = if stem == "mod" { file.parent()?.file_name()?.to_str()? } else { stem };
    EMPTY_NAMES.contains(&name).then(|| {
        format!("{} is called `{name}`: name it after the concept it holds", file.display())
    })
}

/// The part of `line` that belongs to a machine or a host and not to the project.
fn foreign(line: &str) -> Option<String> {
    let machine = MACHINE_PATHS.iter().find(|path| {
        // Such a folder is at the start of a path; `crate/home/x` and `../home/x` are ours.
        let inside = |c: char| c.is_alphanumeric() || "._-~}*".contains(c);
        line.match_indices(*path).any(|(at, _)| !line[..at].ends_with(inside))
    });
    if let Some(path) = machine {
        return Some(format!("names the machine path {path}…: use a relative one"));
    }
    let host = REGISTRY_HOSTS.iter().find(|host| line.contains(*host))?;
    Some(format!("names the registry host {host}: leave it to the user's pip or Cargo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree with `files`, and tidy's findings in it.
    fn findings(files: &[(&str, &str)]) -> Result<Vec<String>> {
        let root = tempfile::tempdir()?;
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().context("a file in a folder")?)?;
            fs::write(path, content)?;
        }
        check(root.path(), &project_files(root.path())?)
    }

    #[test]
    fn a_good_tree_has_no_findings() -> Result<()> {
        let longest = "// line\n".repeat(MAX_LINES);
        let relative =
            MACHINE_PATHS.map(|path| format!("see ..{path}x, models{path} and ~{path}")).join("\n");
        let found = findings(&[
            ("crates/reft-core/src/loreft.rs", longest.as_str()),
            ("crates/reft-core/src/database.rs", relative.as_str()),
            (".cargo/config.toml", "include = \"../libtorch/cargo.toml\"\n"),
            ("Cargo.lock", "source = \"registry+https://github.com/rust-lang/crates.io-index\"\n"),
            ("README.md", "cargo xtask demo\n"),
        ])?;
        assert_eq!(found, Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn a_rust_file_past_the_limit_is_found_and_other_files_may_be_long() -> Result<()> {
        let long = "// line\n".repeat(MAX_LINES + 1);
        let found = findings(&[("src/loreft.rs", &long), ("tests/oracle/table.json", &long)])?;
        assert_eq!(found, ["src/loreft.rs has 801 lines, at most 800: split it"]);
        Ok(())
    }

    #[test]
    fn a_folder_of_too_many_files_is_found_in_sources_only() -> Result<()> {
        let of = |folder: &str, count: usize| {
            (0..count).map(|i| (format!("{folder}/file{i}.rs"), "")).collect::<Vec<_>>()
        };
        let mut files = of("crates/a/src", MAX_FILES);
        files.extend(of("crates/a/src/deep", MAX_FILES + 1));
        files.extend(of("crates/a/tests", MAX_FILES + 1));
        files.extend(
            ["crates/a/src/lib.rs", "crates/a/src/deep/mod.rs"].map(|f| (f.to_owned(), "")),
        );
        let files: Vec<_> = files.iter().map(|(path, content)| (path.as_str(), *content)).collect();
        let found = findings(&files)?;
        assert_eq!(found, ["crates/a/src/deep holds 13 files, at most 12: make subfolders"]);
        Ok(())
    }

    #[test]
    fn names_that_say_nothing_are_found_as_file_and_as_folder() -> Result<()> {
        let found = findings(&[
            ("src/utils.rs", ""),
            ("tests/common/mod.rs", ""),
            ("src/codebase.rs", ""),
            ("docs/misc.md", ""),
        ])?;
        assert_eq!(
            found,
            [
                "src/utils.rs is called `utils`: name it after the concept it holds",
                "tests/common/mod.rs is called `common`: name it after the concept it holds",
            ]
        );
        Ok(())
    }

    #[test]
    fn machine_paths_and_registry_hosts_are_found_with_their_line() -> Result<()> {
        let secret = format!("fine\nsee \"{}me/x\"\n", MACHINE_PATHS[0]);
        let bare = format!("{}main\n", MACHINE_PATHS[2]);
        let url = format!("https://{}/simple\n", REGISTRY_HOSTS[0]);
        let found = findings(&[("a.md", &secret), (".hidden/b.sh", &bare), ("c.py", &url)])?;
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with(".hidden/b.sh:1: names the machine path"), "{found:?}");
        assert!(found[1].starts_with("a.md:2: names the machine path"), "{found:?}");
        assert!(found[2].starts_with("c.py:1: names the registry host"), "{found:?}");
        Ok(())
    }

    #[test]
    fn ignored_files_are_not_the_projects() -> Result<()> {
        let bad = MACHINE_PATHS[1];
        let found = findings(&[
            (".gitignore", "/target\n"),
            ("target/debug/x.d", bad),
            (".git/config", bad),
            ("crates/a/target/kept.md", bad),
        ])?;
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("crates/a/target/kept.md:1"), "{found:?}");
        Ok(())
    }

    #[test]
    fn a_file_that_is_not_text_is_left_alone() -> Result<()> {
        let root = tempfile::tempdir()?;
        let bytes = [&[0xff, 0xfe][..], MACHINE_PATHS[0].as_bytes()].concat();
        fs::write(root.path().join("model.safetensors"), bytes)?;
        assert_eq!(check(root.path(), &project_files(root.path())?)?, Vec::<String>::new());
        Ok(())
    }
}
