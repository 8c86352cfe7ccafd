//! The licences of everything in the program, as one text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::packing::contents::{Contents, Package};

/// How the names of licence files begin, in capitals.
const BEGINNINGS: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// Folders this deep are looked through: the C sources inside of a crate have licences of their own.
const DEPTH: usize = 4;

/// The text: the licence of each crate, and every licence text of the crates, once.
///
/// # Errors
/// A folder or file that cannot be read.
pub fn text(contents: &Contents) -> Result<String> {
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut table = String::new();
    for package in foreign(contents) {
        let name = format!("{} {}", package.name, package.version);
        let mut n = 0;
        for path in files(&package.folder)? {
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let text = String::from_utf8_lossy(&bytes).replace('\r', "").trim().to_owned();
            let inside = path.strip_prefix(&package.folder)?.display();
            texts.entry(text).or_default().push(format!("{name} ({inside})"));
            n += 1;
        }
        let none = if n == 0 { "; its package brings no text" } else { "" };
        writeln!(table, "{name}: {}{none}", package.licence)?;
    }
    let mut whole = format!(
        "The program is made of the crates below, beside its own source, and of Rust's standard library (MIT OR Apache-2.0).\n\n{table}"
    );
    for (text, places) in texts {
        write!(whole, "\n{}\n{}\n\n{text}\n", "=".repeat(72), places.join("\n"))?;
    }
    Ok(whole)
}

/// One SPDX expression for everything in the program.
pub fn expression(own: &str, contents: &Contents) -> String {
    let mut others: Vec<&str> = foreign(contents).map(|package| package.licence.as_str()).collect();
    others.sort_unstable();
    others.dedup();
    let in_brackets =
        |licence: &str| if licence.contains(' ') { format!("({licence})") } else { licence.into() };
    let others = others.into_iter().filter(|licence| *licence != own);
    std::iter::once(own).chain(others).map(in_brackets).collect::<Vec<_>>().join(" AND ")
}

fn foreign(contents: &Contents) -> impl Iterator<Item = &Package> {
    contents.packages.iter().filter(|package| package.sha256.is_some())
}

/// The licence files of a crate, sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let walk = ignore::WalkBuilder::new(folder)
        .standard_filters(false)
        .max_depth(Some(DEPTH))
        .sort_by_file_path(Ord::cmp)
        .build();
    for entry in walk {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        let is_text = !name.ends_with(".RS") && !name.ends_with(".PY");
        if entry.file_type().is_some_and(|kind| kind.is_file())
            && is_text
            && BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
        {
            found.push(entry.into_path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, licence: &str, folder: &Path, is_ours: bool) -> Package {
        Package {
            name: name.into(),
            version: "1.0.0".into(),
            licence: licence.into(),
            folder: folder.join(name),
            sha256: (!is_ours).then(|| "ab".into()),
            uses: Vec::new(),
        }
    }

    #[test]
    fn every_licence_stands_once_with_all_who_bring_it() -> Result<()> {
        let dir = tempfile::tempdir()?;
        for (file, text) in [
            ("a/LICENSE-MIT", "the text\r\n"),
            ("a/licensed.rs", "code"),
            ("a/c/zlib/COPYING", "of the C source"),
            ("b/license", "\nthe text"),
            ("ours/LICENSE-MIT", "ours"),
            ("bare/lib.rs", "code"),
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            fs::write(path, text)?;
        }
        let one = |name, licence, is_ours| package(name, licence, dir.path(), is_ours);
        let packages = vec![
            one("a", "MIT OR Apache-2.0", false),
            one("b", "MIT", false),
            one("bare", "Zlib", false),
            one("ours", "MIT OR Apache-2.0", true),
        ];
        let contents = Contents { packages };
        let text = text(&contents)?;
        assert_eq!(text.matches("the text").count(), 1, "{text}");
        assert!(text.contains("a 1.0.0 (LICENSE-MIT)\nb 1.0.0 (license)\n\nthe text\n"), "{text}");
        assert!(text.contains("a 1.0.0 (c/zlib/COPYING)\n\nof the C source\n"), "{text}");
        assert!(text.contains("bare 1.0.0: Zlib; its package brings no text\n"), "{text}");
        assert!(!text.contains("code") && !text.contains("ours 1.0.0"), "{text}");
        let expected = "(MIT OR Apache-2.0) AND MIT AND Zlib";
        assert_eq!(expression("MIT OR Apache-2.0", &contents), expected);
        Ok(())
    }
}
