use std::collections::BTreeMap;
use std::path::Path;

use reft_train::{ColumnNames, RowPlace, TableRow, read_table};
use serde_json::Value;

use crate::{Error, Result};

/// A row of a task's data file, as texts by column name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TaskRow {
    place: RowPlace,
    /// Texts unchanged; numbers and booleans as JSON writes them. Other values are left out.
    pub(crate) fields: BTreeMap<String, String>,
}

/// The rows of a data file. `header` names the columns of a CSV or TSV file that has no header; `columns` names columns anew.
///
/// # Errors
/// As [`read_table`].
pub(crate) fn task_rows(
    path: &Path,
    header: Option<&[String]>,
    columns: Option<&ColumnNames>,
) -> Result<Vec<TaskRow>> {
    let rows = read_table(path, header)?;
    let checked = columns.map_or(Ok(()), |columns| columns.check(&rows));
    checked.map_err(|reason| Error::File { path: path.to_owned(), reason })?;
    let row = |TableRow { place, mut fields }: TableRow| {
        if let Some(columns) = columns {
            columns.rename(&mut fields);
        }
        let fields = fields.into_iter().filter_map(|(name, value)| Some((name, text_of(value)?)));
        TaskRow { place, fields: fields.collect() }
    };
    Ok(rows.into_iter().map(row).collect())
}

impl TaskRow {
    /// The row's place in the file: its line, if the file has lines.
    pub(crate) fn place(&self) -> RowPlace {
        self.place.line().map_or(self.place, RowPlace::Line)
    }

    /// The error that the row cannot be used for this reason.
    pub(crate) fn refused(&self, path: &Path, reason: String) -> Error {
        match self.place.line() {
            Some(line) => Error::line(path, line, reason),
            None => {
                let reason = format!("{}: {reason}", self.place);
                Error::File { path: path.to_owned(), reason }
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn values_are_texts_and_rows_of_lists_know_their_lines() -> TestResult {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("a.json");
        let list = "[\n  {\"a\": \"x\", \"n\": 1.5},\n\n  {\"a\": \"y\",\n   \"t\": true, \"l\": [1]}\n]\n";
        std::fs::write(&path, list)?;
        let columns = "b=a".parse()?;
        let rows = task_rows(&path, None, Some(&columns))?;
        let found: Vec<String> =
            rows.iter().map(|row| format!("{} {:?}", row.place(), row.fields)).collect();
        assert_eq!(
            found,
            [r#"line 2 {"b": "x", "n": "1.5"}"#, r#"line 4 {"b": "y", "t": "true"}"#]
        );
        Ok(())
    }
}
