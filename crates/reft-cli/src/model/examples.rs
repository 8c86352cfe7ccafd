use std::path::Path;
use std::slice;

use anyhow::{Context, Result};
use reft_train::{Encoding, Error, Example, Record};

use crate::terminal::note;

/// The examples of the rows of a file. If `drop_too_long`, one that has no label left when it is cut is left out rather than refused.
///
/// # Errors
/// The first row that cannot be used.
pub fn examples(
    records: &[Record],
    file: &Path,
    encoding: &Encoding,
    drop_too_long: bool,
) -> Result<Vec<Example>> {
    let examples =
        if drop_too_long { fitting(records, encoding) } else { encoding.examples(records) };
    let advice = match &examples {
        Err(Error::NoTarget { .. }) => " (--drop-too-long leaves such examples out)",
        _ => "",
    };
    examples.with_context(|| format!("cannot use {}{advice}", file.display()))
}

fn fitting(records: &[Record], encoding: &Encoding) -> reft_train::Result<Vec<Example>> {
    let mut examples = Vec::with_capacity(records.len());
    for record in records {
        match encoding.examples(slice::from_ref(record)) {
            Ok(example) => examples.extend(example),
            Err(Error::NoTarget { .. }) => {}
            Err(other) => return Err(other),
        }
    }
    let (dropped, n, max) = (records.len() - examples.len(), records.len(), encoding.max_length);
    if dropped > 0 {
        note(format!(
            "{dropped} of {n} examples have no label within {max} tokens and are left out"
        ));
    }
    Ok(examples)
}
