//! The binary `reft`: representation fine-tuning from the command line.
//!
//! One file per command; results go to stdout, progress and messages to stderr. What is computed is computed in the libraries.

mod bench;
mod chat;
mod cli;
mod command_line;
mod compare;
mod config_file;
mod coordinates;
mod cuda;
mod das;
mod eval;
mod examples;
mod export;
mod failure;
mod generate;
mod import;
mod inspect;
mod inspect_adapter;
mod interrupt;
mod layers;
mod list;
mod logits;
mod machine;
mod method_name;
mod model;
mod output;
mod reply_text;
mod sampling_args;
mod steer;
mod train;
mod train_directory;
mod train_method;
mod train_options;
mod train_plan;
mod train_progress;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;

fn main() -> ExitCode {
    failure::report_panics();
    failure::exit_code(|| Cli::parse().run())
}
