use std::path::Path;

use reft_models::plain_reason;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::data::files::table::{RowPlace, TableRow};
use crate::{Error, Result};

/// The rows of a JSON text: objects one after another, in lines or not; a list of objects; an object with such a list below `data`;
/// an object with a list of values, or values by their index, for each column.
///
/// # Errors
/// [`Error::Json`] with line and column; [`Error::Row`] for a row that is no object; [`Error::DataFile`] for columns of different lengths.
pub(crate) fn rows_of_json(text: &str, path: &Path) -> Result<Vec<TableRow>> {
    let reader = JsonReader { text, path };
    if text.trim_start().starts_with('[') {
        let rows: Vec<&RawValue> = serde_json::from_str(text).map_err(reader.broken(1))?;
        return reader.rows_of_list(&rows);
    }
    let values = reader.values()?;
    if let [(one, _)] = values[..] {
        let lists: Option<Lists> = serde_json::from_str(one.get()).ok();
        if let Some(Lists { data: Some(data) }) = lists
            && data.iter().all(|row| row.get().starts_with('{'))
        {
            return reader.rows_of_list(&data);
        }
        if let Some(columns) = columns(one) {
            return rows_of_columns(columns).map_err(|reason| reader.refuse(reason));
        }
    }
    let row = |(value, line): &(&RawValue, usize)| reader.row(value, RowPlace::Line(*line));
    values.iter().map(row).collect()
}

/// An object around the rows.
#[derive(serde::Deserialize)]
struct Lists<'a> {
    #[serde(borrow, alias = "rows", alias = "examples", alias = "train")]
    data: Option<Vec<&'a RawValue>>,
}

struct JsonReader<'a> {
    text: &'a str,
    path: &'a Path,
}

impl<'a> JsonReader<'a> {
    /// Values written one after another, each with its line. If the first line is a value, each line is one.
    fn values(&self) -> Result<Vec<(&'a RawValue, usize)>> {
        let lines = || self.text.split('\n').zip(1..).filter(|(line, _)| !line.trim().is_empty());
        let first = lines().next().map_or("", |(line, _)| line);
        if serde_json::from_str::<&RawValue>(first).is_ok() {
            let value = |(line, number): (&'a str, usize)| {
                Ok((serde_json::from_str(line).map_err(self.broken(number))?, number))
            };
            return lines().map(value).collect();
        }
        let values = serde_json::Deserializer::from_str(self.text).into_iter::<&RawValue>();
        let values = values.collect::<Result<Vec<_>, _>>().map_err(self.broken(1))?;
        Ok(self.with_lines(&values))
    }

    /// Values of the text, in order, each with its line.
    fn with_lines(&self, values: &[&'a RawValue]) -> Vec<(&'a RawValue, usize)> {
        let (mut line, mut counted) = (1, 0); // the line number of byte `counted`
        let with_line = |value: &&'a RawValue| {
            let at = value.get().as_ptr().addr() - self.text.as_ptr().addr();
            line += self.text[counted..at].matches('\n').count();
            counted = at;
            (*value, line)
        };
        values.iter().map(with_line).collect()
    }

    fn rows_of_list(&self, rows: &[&'a RawValue]) -> Result<Vec<TableRow>> {
        let rows = self.with_lines(rows).into_iter().zip(1..);
        rows.map(|((row, line), n)| self.row(row, RowPlace::Row(n, Some(line)))).collect()
    }

    fn row(&self, value: &RawValue, place: RowPlace) -> Result<TableRow> {
        match serde_json::from_str(value.get()) {
            Ok(fields) => Ok(TableRow { place, fields }),
            Err(_) => {
                let (path, place) = (self.path.to_owned(), place.to_string());
                Err(Error::Row { path, place, reason: "the row is no JSON object".to_owned() })
            }
        }
    }

    fn refuse(&self, reason: String) -> Error {
        Error::DataFile { path: self.path.to_owned(), reason }
    }

    /// The parser's error for a text that begins on a line of the file.
    fn broken(&self, first_line: usize) -> impl Fn(serde_json::Error) -> Error {
        move |error| {
            let text = plain_reason(&error);
            // the parser's message without line and column: they count from the parsed text
            let reason = text.rsplit_once(" at line ").map_or(&*text, |(reason, _)| reason);
            let (path, reason) = (self.path.to_owned(), reason.to_owned());
            let line = first_line + error.line().saturating_sub(1);
            Error::Json { path, line, column: error.column(), reason }
        }
    }
}

/// The values of each column, if an object is a table by columns and no row.
fn columns(value: &RawValue) -> Option<Vec<(String, Vec<Value>)>> {
    let fields: Map<String, Value> = serde_json::from_str(value.get()).ok()?;
    let column = |(name, value): (String, Value)| match value {
        Value::Array(values) => Some((name, values)),
        // as pandas writes them: {"0": …, "1": …}
        Value::Object(values) if values.keys().zip(0..).all(|(key, i)| *key == i.to_string()) => {
            Some((name, values.into_iter().map(|(_, value)| value).collect()))
        }
        _ => None,
    };
    let columns: Vec<_> = fields.into_iter().map(column).collect::<Option<_>>()?;
    let is_of_row = |(name, values): &(String, Vec<Value>)| match name.as_str() {
        "input_ids" => values.first().is_none_or(Value::is_number),
        "prompt" | "completion" | "messages" | "conversations" | "conversation" => {
            values.first().is_none_or(Value::is_object)
        }
        _ => false,
    };
    let is_table = !columns.is_empty() && !columns.iter().any(is_of_row);
    is_table.then_some(columns)
}

fn rows_of_columns(columns: Vec<(String, Vec<Value>)>) -> Result<Vec<TableRow>, String> {
    let length = columns.first().map_or(0, |(_, values)| values.len());
    if let Some((name, values)) = columns.iter().find(|(_, values)| values.len() != length) {
        return Err(format!(
            "column {name} has {} values, {} has {length}; give each column one for every row",
            values.len(),
            columns[0].0
        ));
    }
    let row = |number| TableRow { place: RowPlace::Row(number, None), fields: Map::new() };
    let mut rows: Vec<TableRow> = (1..=length).map(row).collect();
    for (name, values) in columns {
        for (row, value) in rows.iter_mut().zip(values) {
            row.fields.insert(name.clone(), value);
        }
    }
    Ok(rows)
}
