use std::collections::BTreeMap;
use std::path::Path;

use reft_models::{plain_reason, read_text};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::{Error, Result};

/// A row of a data file by column name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableRow {
    /// Line of the file that the row begins on, counted from 1.
    pub(crate) line: usize,
    /// Texts as they are; numbers, true and false as JSON writes them. What has no such form is left out.
    pub(crate) fields: BTreeMap<String, String>,
}

/// The rows of a data file, which its ending says to be TSV, CSV, JSON or JSONL. `columns` names the columns of a TSV or CSV file that has
/// no header.
///
/// A TSV file has no quotes: a tab ends a field, and nothing else does.
///
/// # Errors
/// [`Error::File`] for an ending that is not known or a file without rows; [`reft_models::Error::Line`] for a line that cannot be read.
pub(crate) fn read_table(path: &Path, columns: Option<&[String]>) -> Result<Vec<TableRow>> {
    let refuse = |reason: String| Err(Error::File { path: path.to_owned(), reason });
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let rows = match ending.to_ascii_lowercase().as_str() {
        "tsv" => read_delimited(path, b'\t', columns)?,
        "csv" => read_delimited(path, b',', columns)?,
        "json" | "jsonl" if columns.is_some() => {
            return refuse(
                "columns are named for a TSV or CSV file without header; rows of JSON have names"
                    .to_owned(),
            );
        }
        "json" | "jsonl" => read_json(path)?,
        other => {
            return refuse(format!(
                "the ending {other:?} is not known; expected .tsv, .csv, .json or .jsonl"
            ));
        }
    };
    if rows.is_empty() { refuse("the file holds no row".to_owned()) } else { Ok(rows) }
}

fn read_delimited(path: &Path, delimiter: u8, columns: Option<&[String]>) -> Result<Vec<TableRow>> {
    let text = read_text(path)?;
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(delimiter == b',')
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    let fail = |line: usize, reason: String| Error::line(path, line, reason);
    let mut names: Option<Vec<String>> = columns.map(<[_]>::to_vec);
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| {
            let line = error.position().map_or(1, |position| position.line() as usize);
            fail(line, error.to_string())
        })?;
        let line = record.position().map_or(1, |position| position.line() as usize);
        let Some(names) = &names else {
            names = Some(record.iter().map(str::to_owned).collect());
            continue;
        };
        if record.len() != names.len() {
            let (found, expected) = (record.len(), names.join(", "));
            return Err(fail(
                line,
                format!("{found} fields, expected {}: {expected}", names.len()),
            ));
        }
        let fields = names.iter().cloned().zip(record.iter().map(str::to_owned)).collect();
        rows.push(TableRow { line, fields });
    }
    Ok(rows)
}

/// A JSON list of objects, or objects one after another.
fn read_json(path: &Path) -> Result<Vec<TableRow>> {
    let text = read_text(path)?;
    let broken = |error: serde_json::Error| {
        let words = plain_reason(&error); // without the parser's own line and column
        let reason = words.split(" at line ").next().unwrap_or_default().to_owned();
        Error::line(path, error.line(), reason)
    };
    let rows: Vec<&RawValue> = match text.trim_start().starts_with('[') {
        true => serde_json::from_str(&text).map_err(broken)?,
        false => {
            let rows = serde_json::Deserializer::from_str(&text).into_iter();
            rows.collect::<std::result::Result<_, _>>().map_err(broken)?
        }
    };
    let (mut line, mut counted) = (1, 0); // the lines before `counted`
    let row = |row: &RawValue| {
        let at = row.get().as_ptr().addr() - text.as_ptr().addr();
        line += text[counted..at].matches('\n').count();
        counted = at;
        let fields: BTreeMap<String, Value> = serde_json::from_str(row.get())
            .map_err(|_| Error::line(path, line, "the row is no JSON object".to_owned()))?;
        let fields = fields.into_iter().filter_map(|(name, value)| Some((name, text_of(value)?)));
        Ok(TableRow { line, fields: fields.collect() })
    };
    rows.into_iter().map(row).collect()
}

fn text_of(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::line_refused;

    type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

    fn read(name: &str, text: &str, columns: &[&str]) -> Result<Vec<(usize, Vec<String>)>> {
        let directory =
            tempfile::tempdir().map_err(reft_models::io_error("create", Path::new(name)))?;
        let path = directory.path().join(name);
        std::fs::write(&path, text).map_err(reft_models::io_error("write", &path))?;
        let columns: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
        let rows = read_table(&path, (!columns.is_empty()).then_some(columns.as_slice()))?;
        let row = |row: TableRow| {
            let fields = row.fields.into_iter().map(|(name, text)| format!("{name}={text}"));
            (row.line, fields.collect())
        };
        Ok(rows.into_iter().map(row).collect())
    }

    #[test]
    fn tabs_alone_end_a_field_of_a_tsv() -> TestResult {
        let rows = read("a.tsv", "he said \"no\"\t1\n\"x, y\t0\n", &["text", "label"])?;
        assert_eq!(rows[0], (1, vec!["label=1".into(), "text=he said \"no\"".into()]));
        assert_eq!(rows[1], (2, vec!["label=0".into(), "text=\"x, y".into()]));
        Ok(())
    }

    #[test]
    fn a_csv_has_a_header_and_quotes() -> TestResult {
        let rows = read("a.csv", "b,a\n\"one,\ntwo\",3\nfour,5\n", &[])?;
        let expected = [
            (2, vec!["a=3".to_owned(), "b=one,\ntwo".to_owned()]),
            (4, vec!["a=5".into(), "b=four".into()]),
        ];
        assert_eq!(rows, expected);
        Ok(())
    }

    #[test]
    fn rows_of_json_know_their_lines() -> TestResult {
        let list = "[\n  {\"a\": \"x\", \"n\": 1.5},\n\n  {\"a\": \"y\",\n   \"t\": true, \"l\": [1]}\n]\n";
        let (first, second) =
            (vec!["a=x".to_owned(), "n=1.5".into()], vec!["a=y".to_owned(), "t=true".into()]);
        assert_eq!(read("a.json", list, &[])?, [(2, first.clone()), (4, second.clone())]);
        let lines = "{\"a\": \"x\", \"n\": 1.5}\n\n\n{\"a\": \"y\", \"t\": true}\n";
        assert_eq!(read("a.jsonl", lines, &[])?, [(1, first), (4, second)]);
        Ok(())
    }

    #[test]
    fn what_is_broken_is_named_with_its_line() {
        let (line, reason) = line_refused(read("a.tsv", "x\t1\ny\n", &["text", "label"]));
        assert_eq!((line, reason.as_str()), (2, "1 fields, expected 2: text, label"));
        assert_eq!(line_refused(read("a.json", "[{\"a\": 1},\n {\"a\" 2}]", &[])).0, 2);
        assert_eq!(line_refused(read("a.json", "[{\"a\": 1}\n {\"a\": 2}]", &[])).0, 2);
        assert_eq!(line_refused(read("a.json", "[{\"a\": 1}]\n\nx", &[])).0, 3);
        assert_eq!(line_refused(read("a.json", "[\n{\"a\": 1},\n", &[])).0, 3);
        assert_eq!(line_refused(read("a.jsonl", "{\"a\": 1}\n[1]\n", &[])).0, 2);
        assert!(matches!(read("a.txt", "x", &[]), Err(Error::File { .. })));
        assert!(matches!(read("a.json", "[]", &[]), Err(Error::File { .. })));
        assert!(matches!(read("a.json", "[{}]", &["a"]), Err(Error::File { .. })));
    }
}
