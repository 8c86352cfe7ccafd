use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, Result};

/// The value that a name stands for: `accepted` lists the names, which files have too.
///
/// # Errors
/// [`Error::UnknownName`].
pub(crate) fn named<T: DeserializeOwned>(
    what: &'static str,
    name: &str,
    accepted: &'static str,
) -> Result<T> {
    let unknown = |_| Error::UnknownName { what, found: name.to_owned(), accepted };
    serde_json::from_value(Value::from(name)).map_err(unknown)
}
