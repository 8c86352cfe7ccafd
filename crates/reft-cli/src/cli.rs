//! The command line as a whole.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::import::{self, ImportArgs};
use crate::logits::{self, LogitsArgs};

/// Representation fine-tuning (ReFT) of language models: small learned edits of the hidden states of a frozen model
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Logits(LogitsArgs),
    Import(ImportArgs),
}

impl Cli {
    /// Runs the command that was asked for.
    ///
    /// # Errors
    /// What the command cannot do.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Logits(args) => logits::run(&args),
            Command::Import(args) => import::run(&args),
        }
    }
}
