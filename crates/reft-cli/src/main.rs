//! The binary `reft`: representation fine-tuning from the command line.
//!
//! One file per command; results go to stdout, progress and messages to stderr. What is computed is computed in the libraries.

mod cli;
mod failure;
mod import;
mod output;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    failure::report_panics();
    failure::exit_code(|| match Cli::parse().command {
        Command::Import(args) => import::run(&args),
    })
}
