use std::fmt::Display;
use std::str::FromStr;

use anyhow::{Result, anyhow};

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
