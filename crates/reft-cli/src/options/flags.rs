use std::fmt::Display;
use std::str::FromStr;

use anyhow::{Result, anyhow, bail};
use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use reft_core::{Error as CoreError, LARGEST_COUNT};
use reft_methods::{MethodOptions, declarations};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Table;

use crate::options::declared::Declared;
use crate::terminal::grouped;

/// Options that a command has as flags.
pub trait FlagGroup: DeserializeOwned {
    /// The options of the group. The given values become a table by name; the group is read from this table as from a file.
    fn declared() -> Vec<Declared>;
}

/// The flags of a group, to be flattened into a command's own.
#[derive(Debug, Clone)]
pub struct Flags<G>(pub G);

impl<G: FlagGroup> Args for Flags<G> {
    fn augment_args(command: Command) -> Command {
        command.args(G::declared().into_iter().map(Declared::flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<G: FlagGroup> FromArgMatches for Flags<G> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |option: Declared| Some((option.name.to_owned(), option.given(matches)?));
        let given: Table = G::declared().into_iter().filter_map(given).collect();
        let refused = |error| clap::Error::raw(ErrorKind::ValueValidation, format!("{error}\n"));
        given.try_into().map(Self).map_err(refused)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The given options of methods.
#[derive(Debug, Clone, Deserialize)]
pub struct MethodFlags(pub MethodOptions);

impl FlagGroup for MethodFlags {
    fn declared() -> Vec<Declared> {
        Declared::of_methods()
    }
}

/// Checks the name of a method, or of several joined with `+`; returns it without spaces.
///
/// # Errors
/// [`reft_methods::Error::UnknownMethod`].
pub fn method_name(text: &str) -> reft_methods::Result<String> {
    let names: Vec<&str> = declarations(text)?.iter().map(|method| method.name).collect();
    Ok(names.join("+"))
}

/// The error with options named as on the command line.
pub fn in_flags(error: impl Into<reft_bench::Error>) -> anyhow::Error {
    use reft_methods::Error::{OptionValue, UnknownOption};

    match error.into() {
        reft_bench::Error::Method(UnknownOption { method, option, accepted }) => {
            let accepted: Vec<String> = match accepted.as_str() {
                "none" => vec![accepted],
                names => names.split(", ").map(flag).collect(),
            };
            let (flag, accepted) = (flag(&option), accepted.join(", "));
            anyhow!("{flag} is no option of method {method}, which takes {accepted}; leave it out")
        }
        reft_bench::Error::Method(OptionValue { option, found, expected }) => {
            anyhow!("{} is {found}, expected {expected}", flag(option))
        }
        reft_bench::Error::Train(reft_train::Error::Core(CoreError::OptionValue {
            option,
            found,
            expected,
        })) => anyhow!("{} is {found}, expected {expected}", flag(option)),
        other => other.into(),
    }
}

/// Refuses counts that are 0 or above [`LARGEST_COUNT`].
///
/// # Errors
/// If there is such a count. The error names the first.
pub fn check_counts<const N: usize>(flags: [(&str, usize); N]) -> Result<()> {
    match flags.into_iter().find(|(_, value)| !(1..=LARGEST_COUNT).contains(value)) {
        Some((flag, found)) => {
            bail!(
                "{flag} is {found}, expected at least 1 and at most {}",
                grouped(LARGEST_COUNT as i64)
            )
        }
        None => Ok(()),
    }
}

/// The flag of an option.
pub fn flag(option: &str) -> String {
    format!("--{}", option.replace('_', "-"))
}

/// At least one value, with commas between them.
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
    fn names_are_methods_alone_or_joined() {
        for (text, name) in [("lora", "lora"), ("loreft + lora", "loreft+lora")] {
            assert_eq!(method_name(text).ok().as_deref(), Some(name));
        }
        for wrong in ["", "Lora", "loreft+", "+", "loreft lora", "adapters"] {
            assert!(method_name(wrong).is_err(), "{wrong:?} is taken for a method");
        }
    }

    #[test]
    fn lists_have_commas_between_their_values() -> Result<()> {
        assert_eq!("1, 8,64".parse::<List<i64>>()?.0, [1, 8, 64]);
        for wrong in ["", "1,", "1;2", "1,x"] {
            assert!(wrong.parse::<List<i64>>().is_err(), "{wrong:?}");
        }
        Ok(())
    }
}
