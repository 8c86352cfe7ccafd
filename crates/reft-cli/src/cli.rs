//! The command line as a whole.

use clap::{Parser, Subcommand};

use crate::import::ImportArgs;

/// Representation fine-tuning (ReFT) of language models: small learned edits of the hidden states of a frozen model
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Import(ImportArgs),
}
