use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::str::FromStr;

use reft_core::{Error as CoreError, declare_options};
use serde_json::{Map, Value};

use crate::TableRow;

declare_options! {
    /// The options of commands that read data files.
    pub struct ColumnOptions {
        /// Meaning of the data's columns: prompt=question,completion=answer takes column question as the prompt [default: by their names]
        columns: Option<ColumnNames> = None, Text("NAME=COLUMN,…") in "Data";
    }
}

/// The meaning of a data file's columns: `prompt=question,completion=answer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnNames(Vec<(String, String)>);

impl ColumnNames {
    /// The meaning of the columns, and their names in the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, column)| (name.as_str(), column.as_str()))
    }

    /// Renames the columns of a row by their meaning. A column that had such a name before is left out.
    pub fn rename(&self, fields: &mut Map<String, Value>) {
        let named: Vec<_> =
            self.iter().filter_map(|(name, column)| Some((name, fields.remove(column)?))).collect();
        for (name, _) in self.iter() {
            fields.remove(name);
        }
        fields.extend(named.into_iter().map(|(name, value)| (name.to_owned(), value)));
    }

    /// Checks that some row has each of the columns.
    ///
    /// # Errors
    /// The first column that no row has, and the columns that the rows have.
    pub fn check(&self, rows: &[TableRow]) -> Result<(), String> {
        let is_missing = |column: &&str| !rows.iter().any(|row| row.fields.contains_key(*column));
        let Some(missing) = self.iter().map(|(_, column)| column).find(is_missing) else {
            return Ok(());
        };
        let found: BTreeSet<&String> = rows.iter().flat_map(|row| row.fields.keys()).collect();
        let found: Vec<&str> = found.into_iter().map(String::as_str).collect();
        Err(format!(
            "--columns names the column {missing}, which no row has; the columns are {}",
            found.join(", ")
        ))
    }
}

impl FromStr for ColumnNames {
    type Err = CoreError;

    fn from_str(text: &str) -> Result<Self, CoreError> {
        let refuse = |()| CoreError::OptionValue {
            option: "columns",
            found: format!("{text:?}"),
            expected: "NAME=COLUMN, several with commas between them and each name once, such as prompt=question,completion=answer",
        };
        let mut names: Vec<(String, String)> = Vec::new();
        for entry in text.split(',') {
            let (name, column) = entry.split_once('=').ok_or(()).map_err(refuse)?;
            let (name, column) = (name.trim().to_owned(), column.trim().to_owned());
            let is_twice = names.iter().any(|(own, from)| *own == name || *from == column);
            if name.is_empty() || column.is_empty() || is_twice {
                return Err(refuse(()));
            }
            names.push((name, column));
        }
        Ok(Self(names))
    }
}

impl Display for ColumnNames {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let entries: Vec<String> = self.iter().map(|(name, c)| format!("{name}={c}")).collect();
        f.write_str(&entries.join(","))
    }
}

reft_core::as_text!(ColumnNames);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_written_as_they_are_read_and_each_is_named_once() {
        let columns = "prompt = my question ,completion=a=b".parse::<ColumnNames>();
        let columns = columns.map(|columns| columns.to_string());
        assert_eq!(columns.ok().as_deref(), Some("prompt=my question,completion=a=b"));
        for wrong in ["", "prompt", "prompt=", "=a", "a=b,", "a=b,a=c", "a=c,b=c"] {
            assert!(wrong.parse::<ColumnNames>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn named_columns_take_the_place_of_those_that_had_their_names() -> Result<(), CoreError> {
        let columns: ColumnNames = "prompt=answer,answer=q".parse()?;
        let fields = json!({"prompt": "old", "answer": "a", "q": "b", "more": 1});
        let mut fields = fields.as_object().cloned().unwrap_or_default();
        columns.rename(&mut fields);
        assert_eq!(Value::Object(fields), json!({"more": 1, "prompt": "a", "answer": "b"}));
        Ok(())
    }
}
