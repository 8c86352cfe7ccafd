use std::str::FromStr;

use anyhow::{Result, bail};

/// Coordinates, counted from 0, in ascending order, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coordinates(pub Vec<i64>);

/// No subspace has more: keeps a slip of the finger from filling the memory.
const MOST: i64 = 65_536;

impl FromStr for Coordinates {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut coordinates = Vec::new();
        for part in text.split([',', ';']) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.trim().parse::<i64>(), last.trim().parse::<i64>()) {
                (Ok(first), Ok(last)) if 0 <= first && first <= last && last < MOST => {
                    coordinates.extend(first..=last);
                }
                _ => bail!(
                    "{part:?} in {text:?} is no coordinate; use one such as 4, or several such as 0-3,6 (counted from 0)"
                ),
            }
        }
        coordinates.sort_unstable();
        coordinates.dedup();
        Ok(Self(coordinates))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_numbers_and_ranges() -> Result<()> {
        for (text, expected) in [
            ("4", vec![4]),
            ("0-3", vec![0, 1, 2, 3]),
            ("6;0-2", vec![0, 1, 2, 6]),
            ("1, 0-1", vec![0, 1]),
        ] {
            assert_eq!(text.parse::<Coordinates>()?.0, expected, "{text}");
        }
        for wrong in ["", "-1", "3-1", "a", "1-", "0-3,", "0-99999999999"] {
            assert!(wrong.parse::<Coordinates>().is_err(), "{wrong:?} is taken for coordinates");
        }
        Ok(())
    }
}
