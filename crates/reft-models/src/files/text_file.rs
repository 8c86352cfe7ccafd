//! Files of text, above all TOML: what is wrong in them is said with its line.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use crate::{Error, Result, io_error};

/// The text of a file, without a byte order mark.
///
/// # Errors
/// [`Error::Io`]; [`Error::Line`] with the first line that is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(io_error("read", path))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|&&byte| byte == b'\n').count();
        let reason = "the text is no UTF-8; expected UTF-8".to_owned();
        Error::Line { path: path.to_owned(), line, reason }
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// A step on the way to a value of a TOML file.
#[derive(Debug, Clone, Copy)]
pub enum Key<'a> {
    /// A field of a table.
    Name(&'a str),
    /// An entry of an array.
    Index(usize),
}

/// The line that a value of a TOML file stands on, or the last of its parents that is there; 1 if none is.
pub fn line_of(text: &str, path: &[Key]) -> usize {
    let Ok(table) = DeTable::parse(text) else { return 1 };
    let mut line = 1;
    let mut value: Option<&DeValue> = None;
    for (i, key) in path.iter().enumerate() {
        let next = match (key, value) {
            (Key::Name(name), None) if i == 0 => table.get_ref().get(*name),
            (Key::Name(name), Some(DeValue::Table(table))) => table.get(*name),
            (Key::Index(index), Some(DeValue::Array(array))) => array.get(*index),
            _ => None,
        };
        let Some(next) = next else { break };
        // an array of tables has the span of its first header
        line = 1 + text[..next.span().start].matches('\n').count();
        value = Some(next.get_ref());
    }
    line
}

/// A TOML error with its file and line.
pub fn toml_error(text: &str, path: &Path, error: &toml::de::Error) -> Error {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = 1 + before.matches('\n').count();
    Error::Line { path: path.to_owned(), line, reason: error.message().replace('\n', ", ") }
}
