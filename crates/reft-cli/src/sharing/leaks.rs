//! Keeps paths of this machine out of files that leave it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Result;
use reft_models::io_error;

/// Most bytes of a file that are searched.
const LONGEST: u64 = 100 << 20;

/// Finds an absolute path of this machine in a text file, or in the header of a safetensors file.
///
/// # Errors
/// If the file cannot be read.
pub fn path_of_this_machine(file: &Path) -> Result<Option<String>> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut opened = File::open(file)?;
        let mut bytes = Vec::new();
        if file.extension().is_some_and(|own| own == "safetensors") {
            let mut length = [0; 8];
            opened.read_exact(&mut length)?;
            let length = u64::from_le_bytes(length).min(LONGEST);
            opened.take(length).read_to_end(&mut bytes)?;
        } else {
            opened.take(LONGEST).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    };
    let bytes = read().map_err(io_error("read", file))?;
    let is_here = |root: &str| Path::new(root).is_dir();
    Ok(std::str::from_utf8(&bytes).ok().and_then(|text| path_in(text, &is_here)))
}

/// The first absolute path in a text: several folders, the first of which exists, or a path with a drive.
fn path_in(text: &str, is_there: &dyn Fn(&str) -> bool) -> Option<String> {
    let ends = |c: char| c.is_whitespace() || "\"'`()[]{}<>|,;=\\".contains(c);
    let is_path = |word: &&str| {
        let mut folders = word.split('/');
        let is_rooted = folders.next() == Some("");
        let first = folders.next().unwrap_or_default();
        is_rooted
            && !first.is_empty()
            && folders.next().is_some_and(|second| !second.is_empty())
            && is_there(&format!("/{first}"))
    };
    let words = text.split(ends).map(|word| word.trim_end_matches(['.', ':']));
    if let Some(found) = words.clone().find(is_path) {
        return Some(found.to_owned());
    }
    // a drive with `\\` as in JSON, or with `\Users\`: a single backslash may also begin an escape such as `\n`
    text.match_indices(":\\").find_map(|(at, _)| {
        let drive = text[..at].chars().next_back().filter(char::is_ascii_uppercase)?;
        let before = text[..at].chars().rev().nth(1);
        let rest: String =
            text[at..].chars().take_while(|c| !c.is_whitespace() && !"\"'`".contains(*c)).collect();
        let is_told = rest.starts_with(":\\\\") || rest.starts_with(":\\Users\\");
        (is_told && before.is_none_or(|c| !c.is_alphanumeric())).then(|| format!("{drive}{rest}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_this_machine_are_found_and_others_are_not() {
        let is_there = |root: &str| ["/models", "/data"].contains(&root);
        let found = |text: &str| path_in(text, &is_there);
        for (text, path) in [
            ("{\"base\": \"/models/ada/llama\"}", "/models/ada/llama"),
            ("model = '/data/x'.", "/data/x"),
            ("see `/models/ada/run`", "/models/ada/run"),
            ("in C:\\Users\\ada\\run", "C:\\Users\\ada\\run"),
            ("{\"a\": \"D:\\\\runs\\\\x\"}", "D:\\\\runs\\\\x"),
        ] {
            assert_eq!(found(text).as_deref(), Some(path), "{text}");
        }
        for text in [
            "org/name, and/or, runs/a/b, ../up/there",
            "https://example.org/models/ada",
            "GET /v1/models, /models, a / b",
            "| --- | --- |\n// comment",
            "note:\\ and 12:\\x",
            "{\"template\": \"Q:\\nA:\\nAnswer\"}",
        ] {
            assert_eq!(found(text), None, "{text}");
        }
    }
}
