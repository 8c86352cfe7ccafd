use std::path::Path;

use serde_json::Value;

use crate::data::files::table::{RowPlace, TableRow};
use crate::{Error, Result};

/// The end of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delimiter {
    /// CSV: a field with commas, quotes or ends of lines stands in quotes.
    Comma,
    /// TSV: a tab ends a field, and nothing else does; there are no quotes.
    Tab,
}

/// The rows of a CSV or TSV file. Its first line names the columns, unless `header` does.
///
/// # Errors
/// [`Error::Row`] for a line that cannot be read, [`Error::DataFile`] for names that cannot be.
pub(crate) fn rows_of_delimited(
    text: &str,
    path: &Path,
    delimiter: Delimiter,
    header: Option<&[String]>,
) -> Result<Vec<TableRow>> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(if delimiter == Delimiter::Comma { b',' } else { b'\t' })
        .quoting(delimiter == Delimiter::Comma)
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    let mut names: Option<Vec<String>> = header.map(<[_]>::to_vec);
    let mut rows = Vec::new();
    for record in reader.records() {
        let fail = |line: usize, reason: String| Error::Row {
            path: path.to_owned(),
            place: RowPlace::Line(line).to_string(),
            reason,
        };
        let record = record.map_err(|error| {
            let line = error.position().map_or(1, |position| position.line() as usize);
            fail(line, error.to_string())
        })?;
        let line = record.position().map_or(1, |position| position.line() as usize);
        let Some(names) = &names else {
            let found: Vec<String> = record.iter().map(|name| name.trim().to_owned()).collect();
            check_names(&found, delimiter)
                .map_err(|reason| Error::DataFile { path: path.to_owned(), reason })?;
            names = Some(found);
            continue;
        };
        if record.len() != names.len() {
            let (found, expected) = (record.len(), names.join(", "));
            return Err(fail(
                line,
                format!("{found} fields, expected {}: {expected}", names.len()),
            ));
        }
        let fields = record.iter().map(|field| Value::String(field.to_owned()));
        let fields = names.iter().cloned().zip(fields).collect();
        rows.push(TableRow { place: RowPlace::Line(line), fields });
    }
    Ok(rows)
}

/// Checks the names of columns.
fn check_names(names: &[String], delimiter: Delimiter) -> Result<(), String> {
    if let Some((i, name)) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        return Err(format!(
            "column {} is called {name:?} as one before it; give each a name of its own",
            i + 1
        ));
    }
    let (own, others) = match delimiter {
        Delimiter::Comma => ("commas", [';', '\t', '|']),
        Delimiter::Tab => ("tabs", [',', ';', '|']),
    };
    match (names, names.first().and_then(|name| name.chars().find(|c| others.contains(c)))) {
        ([name], Some(other)) => Err(format!(
            "the first line, {name:?}, has {other:?} between its names, expected {own}; write the file with {own}, or name it by what it is (.csv, .tsv)"
        )),
        _ => Ok(()),
    }
}
