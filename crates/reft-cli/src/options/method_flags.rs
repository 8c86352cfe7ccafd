use anyhow::{Context, Result};
use reft_methods::{MethodOptions, declarations};
use toml::Table;

use crate::options::declared::Declared;
use crate::options::flags::FlagGroup;

/// The options of methods that are given.
#[derive(Debug, Clone)]
pub struct MethodFlags(pub MethodOptions);

impl FlagGroup for MethodFlags {
    fn declared() -> Vec<Declared> {
        Declared::of_methods()
    }

    fn of(given: Table) -> Result<Self> {
        given.try_into().map(Self).context("cannot use the method's options")
    }
}

/// The name of a method that exists, or of several joined with `+`, without spaces.
///
/// # Errors
/// [`reft_methods::Error::UnknownMethod`].
pub fn method_name(text: &str) -> reft_methods::Result<String> {
    let names: Vec<&str> = declarations(text)?.iter().map(|method| method.name).collect();
    Ok(names.join("+"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_methods_alone_or_joined() {
        for (text, name) in [("lora", "lora"), ("loreft + lora", "loreft+lora")] {
            assert_eq!(method_name(text).ok().as_deref(), Some(name));
        }
        for wrong in ["", "Lora", "loreft+", "+", "loreft lora", "adapters"] {
            assert!(method_name(wrong).is_err(), "{wrong:?} is taken for a method");
        }
    }
}
