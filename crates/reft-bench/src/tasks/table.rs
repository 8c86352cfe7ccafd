use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result, read_text};

/// The rows of a data file: TSV, CSV, JSON or JSONL, told by its ending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The file.
    pub path: PathBuf,
    /// Its rows, without the header.
    pub rows: Vec<TableRow>,
}

/// A row by column name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRow {
    /// Line of the file that the row begins on, counted from 1.
    pub line: usize,
    /// Texts as they are; numbers, true and false as JSON writes them. What has no such form is left out.
    pub fields: BTreeMap<String, String>,
}

impl Table {
    /// Reads a file. `columns` names the columns of a TSV or CSV file that has no header.
    ///
    /// A TSV file has no quotes: a tab ends a field, and nothing else does.
    ///
    /// # Errors
    /// [`Error::File`] for an ending that is not known or a file without rows; [`Error::Line`] for a line that cannot be read.
    pub fn read(path: &Path, columns: Option<&[String]>) -> Result<Self> {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let delimited = |delimiter| read_delimited(path, delimiter, columns);
        let rows = match ending.to_ascii_lowercase().as_str() {
            "tsv" => delimited(b'\t')?,
            "csv" => delimited(b',')?,
            "json" | "jsonl" if columns.is_some() => {
                let reason = "columns are named for a TSV or CSV file without header; rows of JSON have names".to_owned();
                return Err(Error::File { path: path.to_owned(), reason });
            }
            "json" | "jsonl" => read_json(path)?,
            other => {
                let reason = format!(
                    "the ending {other:?} is not known; expected .tsv, .csv, .json or .jsonl"
                );
                return Err(Error::File { path: path.to_owned(), reason });
            }
        };
        if rows.is_empty() {
            let reason = "the file holds no row".to_owned();
            return Err(Error::File { path: path.to_owned(), reason });
        }
        Ok(Self { path: path.to_owned(), rows })
    }
}

fn read_delimited(path: &Path, delimiter: u8, columns: Option<&[String]>) -> Result<Vec<TableRow>> {
    let text = read_text(path)?;
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(delimiter == b',')
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    let fail = |line: usize, reason: String| Error::Line { path: path.to_owned(), line, reason };
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
    let line_at = |offset: usize| 1 + text[..offset].matches('\n').count();
    let fail = |line: usize, reason: String| Error::Line { path: path.to_owned(), line, reason };
    let is_list = text.trim_start().starts_with('[');
    let mut at = if is_list { text.find('[').map_or(0, |start| start + 1) } else { 0 };
    let (mut line, mut counted) = (1, 0); // the lines before `counted`
    let mut rows = Vec::new();
    loop {
        at += text[at..].len() - text[at..].trim_start().len();
        if is_list && text[at..].starts_with(']') {
            return match text[at + 1..].trim() {
                "" => Ok(rows),
                _ => Err(fail(line_at(at), "something stands behind the list".to_owned())),
            };
        }
        if !is_list && at == text.len() {
            return Ok(rows);
        }
        line += text[counted..at].matches('\n').count();
        counted = at;
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        let value = match values.next() {
            Some(Ok(value)) => value,
            Some(Err(error)) => {
                return Err(fail(line + error.line().max(1) - 1, error_text(&error)));
            }
            None => return Err(fail(line, "the list does not end; expected ]".to_owned())),
        };
        at += values.byte_offset();
        let Value::Object(object) = value else {
            return Err(fail(line, "the row is no JSON object".to_owned()));
        };
        let fields = object.into_iter().filter_map(|(name, value)| Some((name, text_of(value)?)));
        rows.push(TableRow { line, fields: fields.collect() });
        let rest = text[at..].trim_start();
        if is_list && rest.starts_with(',') {
            at = text.len() - rest.len() + 1;
        } else if is_list && !rest.starts_with(']') {
            return Err(fail(line_at(at), "expected , or ] after the row".to_owned()));
        }
    }
}

fn text_of(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The parser's words without its own line and column.
fn error_text(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rfind(" at line ").map_or(text.clone(), |end| text[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

    fn read(name: &str, text: &str, columns: &[&str]) -> Result<Vec<(usize, Vec<String>)>> {
        let directory = tempfile::tempdir().map_err(|source| reft_models::Error::Io {
            action: "create",
            path: name.into(),
            source,
        })?;
        let path = directory.path().join(name);
        std::fs::write(&path, text).map_err(|source| reft_models::Error::Io {
            action: "write",
            path: path.clone(),
            source,
        })?;
        let columns: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
        let table = Table::read(&path, (!columns.is_empty()).then_some(columns.as_slice()))?;
        let row = |row: TableRow| {
            let fields = row.fields.into_iter().map(|(name, text)| format!("{name}={text}"));
            (row.line, fields.collect())
        };
        Ok(table.rows.into_iter().map(row).collect())
    }

    fn line_of(result: Result<Vec<(usize, Vec<String>)>>) -> (usize, String) {
        match result {
            Err(Error::Line { line, reason, .. }) => (line, reason),
            other => panic!("{other:?}"),
        }
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
        let (line, reason) = line_of(read("a.tsv", "x\t1\ny\n", &["text", "label"]));
        assert_eq!((line, reason.as_str()), (2, "1 fields, expected 2: text, label"));
        assert_eq!(line_of(read("a.json", "[{\"a\": 1},\n {\"a\" 2}]", &[])).0, 2);
        assert_eq!(line_of(read("a.json", "[{\"a\": 1}\n {\"a\": 2}]", &[])).0, 1);
        assert_eq!(line_of(read("a.json", "[{\"a\": 1}]\n\nx", &[])).0, 1);
        assert_eq!(line_of(read("a.json", "[\n{\"a\": 1},\n", &[])).0, 3);
        assert_eq!(line_of(read("a.jsonl", "{\"a\": 1}\n[1]\n", &[])).0, 2);
        assert!(matches!(read("a.txt", "x", &[]), Err(Error::File { .. })));
        assert!(matches!(read("a.json", "[]", &[]), Err(Error::File { .. })));
        assert!(matches!(read("a.json", "[{}]", &["a"]), Err(Error::File { .. })));
    }
}
