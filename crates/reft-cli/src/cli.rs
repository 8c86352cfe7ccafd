//! The command line as a whole.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::bench::{self, BenchArgs, CaseArgs};
use crate::chat::{self, ChatArgs};
use crate::compare::{self, CellArgs, CompareArgs};
use crate::das::{self, DasArgs};
use crate::devices::{self, DevicesArgs};
use crate::eval::{self, EvalArgs};
use crate::export::{self, ExportArgs};
use crate::generate::{self, GenerateArgs};
use crate::import::{self, ImportArgs};
use crate::inspect::{self, InspectArgs};
use crate::logits::{self, LogitsArgs};
use crate::plan::{self, PlanArgs};
use crate::steer::{self, SteerArgs};
use crate::train::{self, TrainArgs};

/// Representation fine-tuning (ReFT) of language models: small learned edits of the hidden states of a frozen model
#[derive(Debug, Parser)]
#[command(name = "reft", version, propagate_version = true, arg_required_else_help = true)]
#[command(args_override_self = true)] // of a flag given twice the last one holds: scripts append
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(Box<TrainArgs>),
    Generate(GenerateArgs),
    Chat(ChatArgs),
    Eval(EvalArgs),
    Compare(CompareArgs),
    #[command(hide = true)]
    CompareCell(CellArgs),
    Das(Box<DasArgs>),
    Steer(Box<SteerArgs>),
    Bench(Box<BenchArgs>),
    #[command(hide = true)]
    BenchCase(CaseArgs),
    Plan(Box<PlanArgs>),
    Devices(DevicesArgs),
    Logits(LogitsArgs),
    Inspect(InspectArgs),
    Import(ImportArgs),
    Export(ExportArgs),
}

impl Cli {
    /// Runs the command that was asked for.
    ///
    /// # Errors
    /// What the command cannot do.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Train(args) => train::run(&args),
            Command::Generate(args) => generate::run(&args),
            Command::Chat(args) => chat::run(&args),
            Command::Eval(args) => eval::run(&args),
            Command::Compare(args) => compare::run(&args),
            Command::CompareCell(args) => compare::run_one_cell(&args),
            Command::Das(args) => das::run(&args),
            Command::Steer(args) => steer::run(&args),
            Command::Bench(args) => bench::run(&args),
            Command::BenchCase(args) => bench::run_one_case(&args),
            Command::Plan(args) => plan::run(&args),
            Command::Devices(args) => devices::run(&args),
            Command::Logits(args) => logits::run(&args),
            Command::Inspect(args) => inspect::run(&args),
            Command::Import(args) => import::run(&args),
            Command::Export(args) => export::run(&args),
        }
    }
}
