use std::fmt::{self, Display};
use std::path::Path;

use serde_json::{Map, Value};

use crate::data::files::contents::Contents;
use crate::data::files::delimited::{Delimiter, rows_of_delimited};
use crate::data::files::json::rows_of_json;
use crate::data::files::parquet::rows_of_parquet;
use crate::{Error, Result};

/// A row of a data file by column name.
#[derive(Debug, Clone, PartialEq)]
pub struct TableRow {
    /// Its place in the file.
    pub place: RowPlace,
    /// Its values. In CSV and TSV all are texts, and an empty text is a missing value.
    pub fields: Map<String, Value>,
}

/// Where in its file a row stands, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowPlace {
    /// The line that it begins on.
    Line(usize),
    /// Its number in a list, and the line that it begins on, if the list has lines.
    Row(usize, Option<usize>),
}

impl RowPlace {
    /// The line that it begins on, if the file has lines.
    pub fn line(self) -> Option<usize> {
        match self {
            Self::Line(line) => Some(line),
            Self::Row(_, line) => line,
        }
    }
}

impl Display for RowPlace {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Row(number, _) => write!(f, "row {number}"),
        }
    }
}

/// The rows of a data file: CSV, TSV, Parquet, or JSON in lines, in a list, below `data`, or by columns. gzip and zstd are unpacked. `header`
/// names the columns of a CSV or TSV file without a header line.
///
/// # Errors
/// If the file cannot be read; [`Error::DataFile`] for one of another kind; [`Error::Json`] and [`Error::Row`] with the place;
/// [`Error::NoExamples`] for one without a row.
pub fn read_table(path: &Path, header: Option<&[String]>) -> Result<Vec<TableRow>> {
    let refuse =
        |reason: &str| Err(Error::DataFile { path: path.to_owned(), reason: reason.to_owned() });
    let rows = match (Contents::open(path)?, delimiter_named(path)) {
        (Contents::Text(text), Some(delimiter)) => {
            rows_of_delimited(&text, path, delimiter, header)?
        }
        _ if header.is_some() => {
            return refuse(
                "columns are named for a CSV or TSV file without a header, and this one has their names",
            );
        }
        (Contents::Parquet(file), _) => rows_of_parquet(file, path)?,
        (Contents::Text(text), None) => match text.trim_start().chars().next() {
            Some('{' | '[') => rows_of_json(&text, path)?,
            None => Vec::new(),
            Some(_) => {
                return refuse(
                    "the text is no JSON, and the name does not end in .csv or .tsv; expected CSV, TSV, JSON, JSON Lines or Parquet",
                );
            }
        },
    };
    if rows.is_empty() { Err(Error::NoExamples { path: path.to_owned() }) } else { Ok(rows) }
}

/// The separator of fields in a file of this name: `a.csv`, `a.tsv.gz`.
fn delimiter_named(path: &Path) -> Option<Delimiter> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let name =
        [".gz", ".zst", ".zstd"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    match name.rsplit_once('.')?.1 {
        "csv" => Some(Delimiter::Comma),
        "tsv" | "tab" => Some(Delimiter::Tab),
        _ => None,
    }
}

/// Whether an empty field counts as missing: CSV and TSV have no other way to say so.
pub(crate) fn empty_is_nothing(path: &Path) -> bool {
    delimiter_named(path).is_some()
}
