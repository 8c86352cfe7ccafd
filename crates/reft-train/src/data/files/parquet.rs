use std::fs::File;
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value, json};

use crate::data::files::table::{RowPlace, TableRow};
use crate::{Error, Result};

/// The rows of a Parquet file, with lists and groups as JSON has them.
///
/// # Errors
/// [`Error::DataFile`] if the file is broken, or compressed in an unsupported way.
pub(crate) fn rows_of_parquet(file: File, path: &Path) -> Result<Vec<TableRow>> {
    let broken = |error: ParquetError| {
        let reason = format!("the Parquet file cannot be read: {error}; write it anew");
        Error::DataFile { path: path.to_owned(), reason }
    };
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let row = |(row, number): (Result<Row, ParquetError>, usize)| {
        let fields = fields(&row.map_err(broken)?);
        Ok(TableRow { place: RowPlace::Row(number, None), fields })
    };
    reader.get_row_iter(None).map_err(broken)?.zip(1..).map(row).collect()
}

fn fields(row: &Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(x) => json!(x),
        Field::Byte(x) => json!(x),
        Field::Short(x) => json!(x),
        Field::Int(x) => json!(x),
        Field::Long(x) => json!(x),
        Field::UByte(x) => json!(x),
        Field::UShort(x) => json!(x),
        Field::UInt(x) => json!(x),
        Field::ULong(x) => json!(x),
        Field::Float16(x) => json!(x.to_f32()),
        Field::Float(x) => json!(x),
        Field::Double(x) => json!(x),
        Field::Str(text) => json!(text),
        // binary data such as an image: only its size is kept
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => json!(text),
            Err(_) => json!({ "bytes": bytes.len() }),
        },
        Field::Group(row) => Value::Object(fields(row)),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let entry = |(key, own): &(Field, Field)| {
                let key = value(key);
                (key.as_str().map_or_else(|| key.to_string(), str::to_owned), value(own))
            };
            Value::Object(map.entries().iter().map(entry).collect())
        }
        // dates, times and decimal numbers
        other => json!(other.to_string()),
    }
}
