//! Files of text, JSON and TOML: read with the path and the faulty line in the error, written whole or not at all.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use crate::{Error, Result, atomic_write, io_error, plain_reason};

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

/// One element of the path to a value of a TOML file.
#[derive(Debug, Clone, Copy)]
pub enum Key<'a> {
    /// A field of a table.
    Name(&'a str),
    /// An entry of an array.
    Index(usize),
}

/// The line of a value in a TOML file, or of its innermost existing parent; 1 if there is none.
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
    Error::Line {
        path: path.to_owned(),
        line,
        reason: plain_reason(&error.message()).replace('\n', ", "),
    }
}

/// A JSON error with its file.
pub fn json_error(path: &Path) -> impl Fn(serde_json::Error) -> Error {
    move |error| Error::Json { path: path.to_owned(), source: error.into() }
}

/// Reads a JSON file.
///
/// # Errors
/// [`Error::Io`]; [`Error::Json`] with the line.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(io_error("read", path))?;
    serde_json::from_str(&text).map_err(json_error(path))
}

/// Writes a JSON file with its fields in alphabetical order.
///
/// # Errors
/// [`Error::Io`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut value = serde_json::to_value(value).map_err(json_error(path))?;
    value.sort_all_objects();
    write_json_in_order(path, &value)
}

/// Writes a JSON file with its fields in the order of the type.
///
/// # Errors
/// [`Error::Io`].
pub fn write_json_in_order(path: &Path, value: &impl Serialize) -> Result<()> {
    write_text(path, &(serde_json::to_string_pretty(value).map_err(json_error(path))? + "\n"))
}

/// Writes a text file.
///
/// # Errors
/// [`Error::Io`].
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    atomic_write::<Error>(path, |temporary| {
        std::fs::write(temporary, text).map_err(io_error("write", path))
    })
}
