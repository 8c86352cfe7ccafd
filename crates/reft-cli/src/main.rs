//! The binary `reft`: representation fine-tuning from the command line.
//!
//! One file per command; results go to stdout, progress and messages to stderr. What is computed is computed in the libraries.

#[cfg(target_os = "linux")]
mod allocator;
mod bench;
mod chat;
mod cli;
mod command_line;
mod compare;
mod config_file;
mod coordinates;
mod cuda;
mod cuda_driver;
mod das;
mod devices;
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
mod plan;
mod reply_text;
mod sampling_args;
mod steer;
mod step_args;
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
    #[cfg(target_os = "linux")]
    allocator::keep_memory_between_steps();
    failure::report_panics();
    failure::exit_code(|| Cli::parse().run())
}
