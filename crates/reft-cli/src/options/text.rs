use std::fmt::Display;
use std::str::FromStr;

use anyhow::{Result, anyhow};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value that files hold as it is given on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Text<T>(pub T);

impl<T: Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(D::Error::custom)
    }
}

/// At least one value, with commas between them: of a flag given twice the last list holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<T: FromStr<Err: Display>> FromStr for List<T> {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        let value = |part: &str| {
            let part = part.trim();
            part.parse().map_err(|error| anyhow!("{part:?} in {s:?}: {error}"))
        };
        s.split(',').map(value).collect::<Result<_>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_commas_between_their_values() -> Result<()> {
        assert_eq!("1, 8,64".parse::<List<i64>>()?.0, [1, 8, 64]);
        for wrong in ["", "1,", "1;2", "1,x"] {
            assert!(wrong.parse::<List<i64>>().is_err(), "{wrong:?}");
        }
        Ok(())
    }
}
