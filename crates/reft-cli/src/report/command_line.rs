use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::terminal::{note, output};

/// A directory that holds something else is not written into; `file` is there if it holds a `what`.
///
/// # Errors
/// If it is not empty and does not hold the file, or cannot be read.
pub fn check_output(output: &Path, file: &str, what: &str) -> Result<()> {
    let is_empty = match std::fs::read_dir(output) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        entries => entries
            .with_context(|| format!("cannot write into {}", output.display()))?
            .next()
            .is_none(),
    };
    if !is_empty && !output.join(file).is_file() {
        let output = output.display();
        bail!("{output} is not empty and no {what} with {file}; name another directory");
    }
    Ok(())
}

/// The command line as it was given, for the report.
pub fn command() -> String {
    let quoted = |word: String| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./+=:,".contains(c);
        if word.chars().all(is_plain) { word } else { format!("'{word}'") }
    };
    let words = std::env::args().skip(1).map(quoted);
    std::iter::once("reft".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

/// Prints a report, and says where its page is.
pub fn show(in_json: bool, report: &impl Serialize, markdown: &str, page: &Path) -> Result<()> {
    output::result(in_json, report, || {
        output::piece(markdown)?;
        note(format!("report: {}", page.display()));
        Ok(())
    })
}
