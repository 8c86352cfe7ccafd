use anyhow::Result;
use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches};
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
