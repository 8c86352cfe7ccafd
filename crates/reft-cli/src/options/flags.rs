use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use reft_methods::{MethodOptions, declarations};
use toml::{Table, Value};

use crate::options::declared::Declared;

/// Options that a command has as flags.
pub trait FlagGroup: Sized {
    /// The options.
    fn declared() -> Vec<Declared>;

    /// What those that are given mean.
    ///
    /// # Errors
    /// If they cannot be.
    fn of(given: Table) -> Result<Self>;
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
        let given = |option: Declared| {
            Some((option.name.to_owned(), matches.get_one::<Value>(option.name)?.clone()))
        };
        let given: Table = G::declared().into_iter().filter_map(given).collect();
        let refused = |error| clap::Error::raw(ErrorKind::ValueValidation, format!("{error:#}\n"));
        G::of(given).map(Self).map_err(refused)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

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
