//! The binary `reft`: representation fine-tuning from the command line.
//!
//! A file per command; results go to stdout, progress and messages to stderr. What is computed is computed in the libraries.

mod cli;

mod train;

mod generation;

mod eval;
mod inspect;
mod interpret;
mod logits;

mod report;

mod cost;

mod files;

#[cfg(test)]
mod messages;

mod machine;
mod model;
mod options;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    machine::allocator::keep_memory_between_steps();
    terminal::report_panics();
    terminal::say_warnings();
    terminal::exit_code(|| Cli::parse().run())
}
