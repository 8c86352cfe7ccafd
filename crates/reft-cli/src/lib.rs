//! The program `reft`: representation fine-tuning from the command line.
//!
//! Each command has a file. Results go to stdout, progress and messages to stderr. All computing is done in the libraries.
//!
//! There is no example in Rust: other programs use the libraries, and the binary calls [`main`]. docs/commands.md has the command lines.

mod cli;

mod train;

mod generation;
mod serve;
mod steering;

mod eval;
mod inspect;
mod interpret;
mod logits;

mod report;

mod cost;

mod files;
mod sharing;

#[cfg(test)]
mod messages;

mod machine;
mod model;
mod options;
mod terminal;

use std::ffi::OsString;

use clap::Parser;

use crate::cli::Cli;

/// Carries out the command line of this process, and ends it.
pub fn main() -> ! {
    #[cfg(target_os = "linux")]
    machine::allocator::keep_memory_between_steps();
    terminal::report_panics();
    terminal::say_warnings();
    terminal::run_and_exit(|| {
        let cli = Cli::parse();
        machine::libtorch::check()?;
        cli.run()
    })
}

/// Runs a command line in this process; returns its exit code and final message. It serves tests of many refusals, because a new process
/// needs half a second to load libtorch.
pub fn ending(arguments: impl IntoIterator<Item = OsString>) -> (u8, Option<String>) {
    match Cli::try_parse_from(std::iter::once("reft".into()).chain(arguments)) {
        Ok(cli) => terminal::ending(|| cli.run()),
        Err(refused) => (refused.exit_code() as u8, Some(refused.to_string())),
    }
}
