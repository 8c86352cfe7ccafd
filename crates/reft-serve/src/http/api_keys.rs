use std::path::Path;

use reft_models::read_text;
use subtle::{Choice, ConstantTimeEq};

use crate::error::{Error, Result};

/// Keys, one of which a client has to show.
#[derive(Clone)]
pub struct ApiKeys(Vec<String>);

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKeys({})", self.0.len())
    }
}

/// Fewest characters of a key; shorter keys can be guessed.
const SHORTEST: usize = 16;

impl ApiKeys {
    /// Keys of a text, one a line.
    ///
    /// # Errors
    /// [`Error::ShortKey`] if there is no key, or a key has fewer than 16 characters.
    pub fn new(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let keys: Vec<String> = lines.map(str::to_owned).collect();
        let shortest = keys.iter().map(String::len).min().unwrap_or(0);
        if shortest < SHORTEST {
            return Err(Error::ShortKey { found: shortest, expected: SHORTEST });
        }
        Ok(Self(keys))
    }

    /// Keys of a file, one a line.
    ///
    /// # Errors
    /// As [`Self::new`], and if the file cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        Self::new(&read_text(path)?)
    }

    /// Whether a text is one of the keys. It is compared with all keys, so that the time does not depend on which one matches.
    pub(crate) fn have(&self, shown: &str) -> bool {
        let is = |key: &String| key.as_bytes().ct_eq(shown.as_bytes());
        self.0.iter().map(is).fold(Choice::from(0), |any, is| any | is).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_whole_line() -> Result<()> {
        let keys = ApiKeys::new("\n first-key-0123456789 \n\nsecond-key-0123456789\n")?;
        assert!(keys.have("first-key-0123456789") && keys.have("second-key-0123456789"));
        for other in ["", "first-key-012345678", "first-key-0123456789 ", "first-key-0123456780"] {
            assert!(!keys.have(other), "{other:?}");
        }
        assert_eq!(format!("{keys:?}"), "ApiKeys(2)");
        for (text, length) in [("", 0), ("  \n", 0), ("first-key-0123456789\nshort", 5)] {
            let refused = ApiKeys::new(text);
            assert!(
                matches!(refused, Err(Error::ShortKey { found, expected: 16 }) if found == length)
            );
        }
        Ok(())
    }
}
