use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use reft_core::{Error as CoreError, Texts};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{ColumnNames, Record, Result};

/// A data file, and how many times its rows are taken in an epoch: `extra.jsonl`, or `extra.jsonl:2.5`.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSource {
    /// The file.
    pub path: PathBuf,
    /// How many times its rows are taken: the whole part for each row, the fraction for a share of the rows, drawn by the seed.
    pub weight: f64,
}

/// The data files of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSources(pub Vec<DataSource>);

/// Reads the rows of a file: [`read_records`](crate::read_records), or [`read_preferences`](crate::read_preferences).
pub type ReadRows = fn(&Path, Option<&ColumnNames>) -> Result<Vec<Record>>;

impl DataSources {
    /// The rows of each file, as `read_rows` reads them. With several files, row ids name the file.
    ///
    /// # Errors
    /// Errors of `read_rows`.
    pub fn read(
        &self,
        columns: Option<&ColumnNames>,
        read_rows: ReadRows,
    ) -> Result<Vec<(&DataSource, Vec<Record>)>> {
        let mut read = Vec::with_capacity(self.0.len());
        for source in &self.0 {
            let mut records = read_rows(&source.path, columns)?;
            if self.0.len() > 1 {
                for record in &mut records {
                    record.id = format!("{} of {}", record.id, source.path.display());
                }
            }
            read.push((source, records));
        }
        Ok(read)
    }
}

impl FromStr for DataSource {
    type Err = CoreError;

    fn from_str(text: &str) -> Result<Self, CoreError> {
        let whole = Self { path: text.into(), weight: 1.0 };
        let Some((path, weight)) = text.rsplit_once(':') else { return Ok(whole) };
        match weight.parse::<f64>() {
            Ok(_) if whole.path.exists() => Ok(whole),
            Ok(weight) if weight.is_finite() && weight > 0.0 && weight <= LARGEST => {
                Ok(Self { path: path.into(), weight })
            }
            Ok(_) => Err(CoreError::OptionValue {
                option: "data",
                found: format!("{text:?}"),
                expected: "FILE:N with N above 0 and at most 1000, how many times its rows are taken",
            }),
            Err(_) => Ok(whole),
        }
    }
}

/// Largest weight: a typing error must not fill the memory.
const LARGEST: f64 = 1000.0;

impl Display for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if self.weight == 1.0 { Ok(()) } else { write!(f, ":{}", self.weight) }
    }
}

reft_core::as_text!(DataSource);

/// In files: a text, or a list of them.
impl Serialize for DataSources {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Texts(self.0.iter().map(DataSource::to_string).collect()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DataSources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Texts(sources) = Texts::deserialize(deserializer)?;
        if sources.is_empty() {
            return Err(D::Error::custom("data is an empty list, expected at least one file"));
        }
        let sources = sources.iter().map(|source| source.parse());
        sources.collect::<Result<_, _>>().map(Self).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_behind_a_file_says_how_often_its_rows_are_taken() -> Result<(), CoreError> {
        let source = |text: &str| text.parse::<DataSource>();
        let of = |path: &str, weight| DataSource { path: path.into(), weight };
        assert_eq!(source("a.jsonl")?, of("a.jsonl", 1.0));
        assert_eq!(source("a.jsonl:2.5")?, of("a.jsonl", 2.5));
        assert_eq!(source("c:\\a.csv")?, of("c:\\a.csv", 1.0));
        for text in ["a.jsonl", "a.jsonl:0.25", "c:a.csv"] {
            assert_eq!(source(text)?.to_string(), text);
        }
        for wrong in ["a:0", "a:-1", "a:1001", "a:inf", "a:nan"] {
            assert!(source(wrong).is_err(), "{wrong}");
        }
        Ok(())
    }

    #[test]
    fn a_file_whose_name_ends_like_a_weight_is_that_file() -> std::io::Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("a:2");
        std::fs::write(&path, "")?;
        let source = path.to_string_lossy().parse().ok();
        assert_eq!(source, Some(DataSource { path, weight: 1.0 }));
        Ok(())
    }

    #[test]
    fn one_file_is_a_text_and_several_are_a_list() -> std::result::Result<(), serde_json::Error> {
        for text in [r#""a.csv""#, r#"["a.csv","b.jsonl:2"]"#] {
            let sources: DataSources = serde_json::from_str(text)?;
            assert_eq!(serde_json::to_string(&sources)?, text);
        }
        assert!(serde_json::from_str::<DataSources>("[]").is_err());
        Ok(())
    }
}
