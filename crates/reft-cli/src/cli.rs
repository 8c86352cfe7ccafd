//! The command line as a whole.

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::cost::bench::{self, BenchArgs, CaseArgs};
use crate::cost::plan::{self, PlanArgs};
use crate::eval::command::{self as eval, EvalArgs};
use crate::files::export::command::{self as export, ExportArgs};
use crate::files::import::{self, ImportArgs};
use crate::generation::chat::{self, ChatArgs};
use crate::generation::generate::{self, GenerateArgs};
use crate::inspect::command::{self as inspect, InspectArgs};
use crate::interpret::attention::{self, AttentionArgs};
use crate::interpret::lens::{self, LensArgs};
use crate::interpret::patch::{self, PatchArgs};
use crate::interpret::states::{self, StatesArgs};
use crate::interpret::tokenize::{self, TokenizeArgs};
use crate::logits::{self, LogitsArgs};
use crate::machine::devices::{self, DevicesArgs};
use crate::report::compare::{self, CellArgs, CompareArgs};
use crate::report::das::{self, DasArgs};
use crate::report::runs::{self, ReportArgs};
use crate::serve::{self, ServeArgs};
use crate::sharing::merge_adapters::{self, MergeAdaptersArgs};
use crate::sharing::pull::{self, PullArgs};
use crate::sharing::push::{self, PushArgs};
use crate::steering::command::{self as steer, SteerArgs};
use crate::train::command::{self as train, TrainArgs};

/// Representation fine-tuning (ReFT) of language models: small learned edits of the hidden states of a frozen model
#[derive(Debug, Parser)]
#[command(name = "reft", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(Box<TrainArgs>),
    Generate(GenerateArgs),
    Chat(ChatArgs),
    Serve(Box<ServeArgs>),
    Eval(EvalArgs),
    Report(ReportArgs),
    Compare(CompareArgs),
    #[command(hide = true)]
    CompareCell(CellArgs),
    Das(Box<DasArgs>),
    Steer(Box<SteerArgs>),
    Patch(PatchArgs),
    Lens(LensArgs),
    Attention(AttentionArgs),
    States(StatesArgs),
    Tokenize(TokenizeArgs),
    Bench(Box<BenchArgs>),
    #[command(hide = true)]
    BenchCase(CaseArgs),
    Plan(Box<PlanArgs>),
    Devices(DevicesArgs),
    Logits(LogitsArgs),
    Inspect(InspectArgs),
    Import(ImportArgs),
    Export(ExportArgs),
    MergeAdapters(MergeAdaptersArgs),
    Pull(PullArgs),
    Push(PushArgs),
}

impl Cli {
    /// Runs the requested command.
    ///
    /// # Errors
    /// Errors of the command.
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Train(args) => train::run(&args),
            Command::Generate(args) => generate::run(&args),
            Command::Chat(args) => chat::run(&args),
            Command::Serve(args) => serve::run(&args),
            Command::Eval(args) => eval::run(&args),
            Command::Report(args) => runs::run(&args),
            Command::Compare(args) => compare::run(&args),
            Command::CompareCell(args) => compare::run_one_cell(&args),
            Command::Das(args) => das::run(&args),
            Command::Steer(args) => steer::run(&args),
            Command::Patch(args) => patch::run(&args),
            Command::Lens(args) => lens::run(&args),
            Command::Attention(args) => attention::run(&args),
            Command::States(args) => states::run(&args),
            Command::Tokenize(args) => tokenize::run(&args),
            Command::Bench(args) => bench::run(&args),
            Command::BenchCase(args) => bench::run_one_case(&args),
            Command::Plan(args) => plan::run(&args),
            Command::Devices(args) => devices::run(&args),
            Command::Logits(args) => logits::run(&args),
            Command::Inspect(args) => inspect::run(&args),
            Command::Import(args) => import::run(&args),
            Command::Export(args) => export::run(&args),
            Command::MergeAdapters(args) => merge_adapters::run(&args),
            Command::Pull(args) => pull::run(&args),
            Command::Push(args) => push::run(&args),
        }
    }
}
