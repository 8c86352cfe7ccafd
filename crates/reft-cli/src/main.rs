//! The binary `reft`: representation fine-tuning from the command line.
//!
//! One file per command; results go to stdout, progress and messages to stderr. What is computed is computed in the libraries.

mod cli;
mod failure;
mod import;
mod layers;
mod logits;
mod machine;
mod model;
mod output;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;

fn main() -> ExitCode {
    failure::report_panics();
    failure::exit_code(|| Cli::parse().run())
}
