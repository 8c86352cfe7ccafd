use std::path::Path;

use anyhow::{Result, bail};
use reft_models::read_text;
use reft_train::{Content, Record};

/// The lines of a file that are not empty, each with its number.
///
/// # Errors
/// If no line has text, or the file cannot be read.
pub fn lines(path: &Path) -> Result<Vec<(usize, String)>> {
    let text = read_text(path)?;
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let lines: Vec<_> = lines.map(|(line, number)| (number, line.to_owned())).collect();
    if lines.is_empty() {
        bail!("{} holds no text; give one a line", path.display());
    }
    Ok(lines)
}

/// A prompt as a data row.
pub fn prompt_record(id: &str, prompt: &str) -> Record {
    let content = Content::Completion { prompt: prompt.to_owned(), completion: String::new() };
    Record::new(id, content)
}
