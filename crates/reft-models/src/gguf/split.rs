//! A GGUF model that was split into several files.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::gguf::header::Header;
use crate::{Error, Result};

/// Reads the headers of a model's files: the file at `path` and, if it is the first of several, the other parts beside it.
///
/// # Errors
/// [`Error::Io`] or [`Error::Format`] if a file cannot be read, is missing, or is another part than its name says; or if the number of
/// tensors in all parts differs from that in the first one's metadata.
pub(crate) fn read_parts(path: &Path) -> Result<Vec<(PathBuf, Header)>> {
    let first = Header::open(path)?;
    let broken = |reason| Error::Format { path: path.to_owned(), reason };
    let count = number(&first, "split.count").unwrap_or(1);
    if count <= 1 {
        return Ok(vec![(path.to_owned(), first)]);
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let own = number(&first, "split.no").unwrap_or(0);
    let ending = |part: u64| format!("-{:05}-of-{count:05}.gguf", part + 1);
    let Some(stem) = name.strip_suffix(&ending(own)) else {
        return Err(broken(format!(
            "it is part {} of {count}, and its name does not end in {}; give the parts the names that they had when the model was split",
            own + 1,
            ending(own)
        )));
    };
    if own != 0 {
        let first = format!("{stem}{}", ending(0));
        return Err(broken(format!("it is part {} of {count}; open the first, {first}", own + 1)));
    }
    let expected = number(&first, "split.tensors.count");
    let mut parts = vec![(path.to_owned(), first)];
    for part in 1..count {
        let name = format!("{stem}{}", ending(part));
        let other = path.with_file_name(&name);
        if !other.is_file() {
            return Err(broken(format!(
                "it is the first of {count} parts, and {name} is not beside it; fetch the missing file"
            )));
        }
        let header = Header::open(&other)?;
        let found = (number(&header, "split.no"), number(&header, "split.count"));
        if found != (Some(part), Some(count)) {
            let said = |number: Option<u64>| number.map_or("nothing".to_owned(), |n| n.to_string());
            let reason = format!(
                "its split.no is {} and its split.count {}, expected {part} and {count}; fetch it again",
                said(found.0),
                said(found.1)
            );
            return Err(Error::Format { path: other, reason });
        }
        parts.push((other, header));
    }
    let found: usize = parts.iter().map(|(_, header)| header.tensors.len()).sum();
    match expected {
        Some(expected) if expected != found as u64 => Err(broken(format!(
            "its {count} parts hold {found} tensors, split.tensors.count is {expected}; fetch them again"
        ))),
        _ => Ok(parts),
    }
}

fn number(header: &Header, key: &str) -> Option<u64> {
    header.metadata.get(key).and_then(Json::as_u64)
}
