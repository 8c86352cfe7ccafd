//! JSON files: read with their path in the error, written whole or not at all.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result, atomic_write, io_error};

/// Reads a JSON file.
///
/// # Errors
/// [`Error::Io`]; [`Error::Json`] with the line.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(io_error("read", path))?;
    serde_json::from_str(&text).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// Writes a JSON file with its fields in alphabetical order.
///
/// # Errors
/// [`Error::Io`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let broken = |source| Error::Json { path: path.to_owned(), source };
    let mut value = serde_json::to_value(value).map_err(broken)?;
    value.sort_all_objects();
    write_json_in_order(path, &value)
}

/// Writes a JSON file with its fields in the order of the type.
///
/// # Errors
/// [`Error::Io`].
pub fn write_json_in_order(path: &Path, value: &impl Serialize) -> Result<()> {
    let broken = |source| Error::Json { path: path.to_owned(), source };
    write_text(path, &(serde_json::to_string_pretty(value).map_err(broken)? + "\n"))
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
