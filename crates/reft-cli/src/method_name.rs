//! `--method`: one method, or several at once.

use std::fmt;
use std::str::FromStr;

use reft_bench::method_option_names;
use serde::{Deserialize, Serialize};

/// The name of a method that exists, or of several joined with `+`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MethodName(String);

impl MethodName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for MethodName {
    fn default() -> Self {
        Self("loreft".to_owned())
    }
}

impl FromStr for MethodName {
    type Err = reft_bench::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names: Vec<&str> = text.split('+').map(str::trim).collect();
        let name = names.join("+");
        method_option_names(&name).map(|_| Self(name))
    }
}

impl TryFrom<String> for MethodName {
    type Error = reft_bench::Error;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MethodName> for String {
    fn from(name: MethodName) -> Self {
        name.0
    }
}

impl fmt::Display for MethodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_methods_alone_or_joined() {
        for (text, name) in [("lora", "lora"), ("loreft + lora", "loreft+lora")] {
            assert_eq!(text.parse::<MethodName>().ok().map(String::from), Some(name.to_owned()));
        }
        for wrong in ["", "Lora", "loreft+", "+", "loreft lora", "adapters"] {
            let refused = wrong.parse::<MethodName>();
            assert!(
                matches!(refused, Err(reft_bench::Error::UnknownMethod { .. })),
                "{wrong:?} is taken for a method"
            );
        }
    }
}
