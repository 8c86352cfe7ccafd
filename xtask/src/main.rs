//! `cargo xtask …`: everything around the crates that plain Cargo does not do.
//!
//! This crate depends on no `reft-*` crate and not on tch, so that it builds on a machine that has no libtorch yet.
//! Messages go to stderr; results (the demo's replies, test summaries) go to stdout.

mod ci;
mod command;
mod cuda_wheels;
mod demo;
#[cfg(test)]
mod documentation;
mod libtorch;
mod libtorch_config;
mod model;
mod newcomer;
mod oracle;
mod outside;
mod packing;
mod platform;
mod python_environment;
mod reft;
mod reliability;
mod rivals;
mod serve_check;
mod setup;
mod tidy;
mod wheel;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::rivals::RivalsArgs;
use crate::workspace::Workspace;

/// Set-up, checks and the demo of this workspace
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Make libtorch/ (or record the installation that LIBTORCH names), so that plain `cargo build` works
    Setup {
        /// Also fetch the GPU half of libtorch to libtorch/cuda (2 GB to download, 3 GB unpacked)
        ///
        /// The same programs use it on a machine with a GPU.
        #[arg(long)]
        cuda: bool,
        /// Also write the Cargo configuration of a project outside of this workspace that uses its crates
        #[arg(long = "for", value_name = "DIR")]
        project: Option<PathBuf>,
    },
    /// Fetch the demo model and convert it to models/SmolLM2-135M-Instruct
    Model,
    /// Train LoReFT on the demo model and show its replies beside the base model's; sets up missing parts
    Demo {
        /// Then serve the adapter beside the base model, until Ctrl-C; an adapter of an earlier demo is reused
        #[arg(long)]
        serve: bool,
    },
    /// Act as a newcomer with a table of questions and answers: train without a recipe, chat, compare, share
    Newcomer,
    /// Run every test of the workspace; sets up missing parts
    Test {
        /// Run only fast tests that do not need the demo model
        ///
        /// These are the crates' own tests, and the tests of models, methods, maps, training and tables of the docs.
        #[arg(long)]
        quick: bool,
        /// Passed on to `cargo test --workspace`, for instance `-- positions` or `-- --test models`
        #[arg(last = true, value_name = "ARGS")]
        arguments: Vec<String>,
    },
    /// Run what continuous integration runs: fmt, tidy, clippy, doc, package, test, wheel
    Ci,
    /// Check rules that the compiler does not know: dependency arrows, file sizes and names, machine paths
    Tidy,
    /// Recompute the oracle files with the Python reference systems and compare them with tests/oracle
    Oracle {
        /// Compare only; nothing in tests/oracle is written
        #[arg(long, required_unless_present = "real")]
        check: bool,
        /// Run published models (all-MiniLM-L6-v2, Gemma 3 270M) here and in transformers
        ///
        /// The models are fetched into the user's cache.
        #[arg(long, conflicts_with = "check")]
        real: bool,
    },
    /// Feed generated input to the parsers of external files; needs cargo-fuzz and a nightly toolchain
    Fuzz {
        /// Seconds for each target
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// Targets of fuzz/targets; all of them if none is named
        targets: Vec<String>,
    },
    /// Kill runs at any moment, fill disks and take directories away; takes some minutes
    Soak {
        /// How often each kind of run is killed
        #[arg(long, default_value_t = 70)]
        times: u32,
        /// Instead, put a server under load for this many minutes
        ///
        /// The memory at the end has to be within 2 % of the memory after a tenth of the time.
        #[arg(long, conflicts_with = "times")]
        minutes: Option<f64>,
    },
    /// Write the program and the Python module reft_rs as a wheel for users with torch, to target/wheels
    Wheel,
    /// Install the wheel in every usual way and use it, beside a stand-in for torch; takes no network
    WheelCheck {
        /// Pack the program that tests are run with, instead of building one for packing
        #[arg(long, conflicts_with = "full")]
        of_tests: bool,
        /// Let pip fetch torch and transformers (several GB), and compare the module's numbers with the program's
        #[arg(long)]
        full: bool,
    },
    /// Pack the program with libtorch for the CPU, licences and a bill of materials, to target/archives
    Dist {
        /// Then unpack it in the bare system below this folder, and train there; needs root
        ///
        /// `debootstrap --variant=minbase bookworm DIR` makes such a system.
        #[arg(long, value_name = "DIR")]
        try_in: Option<PathBuf>,
    },
    /// Run OpenAI's Python client and LiteLLM, fetched by pip, against `reft serve` with the demo's adapter
    ServeCheck {
        /// Instead, provoke thousands of faults between clients and `reft serve`
        ///
        /// Among them are 100,000 malformed requests, 1,000 connections, and 1,000 swaps of an adapter under load.
        #[arg(long)]
        faults: bool,
    },
    /// Build and run examples/downstream, a project outside of this workspace; compiles tch again (minutes)
    Downstream,
    /// Time pyreft and PEFT beside this project, on the same batches in turns, and print the ratios
    Rivals(RivalsArgs),
}

fn main() -> ExitCode {
    let task = Arguments::parse().task;
    match run(task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  caused by: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    let workspace = Workspace::current();
    match task {
        Task::Setup { cuda, project } => {
            setup::run(&workspace, cuda)?;
            project.map_or(Ok(()), |project| outside::prepare(&workspace, &project))
        }
        Task::Downstream => outside::example(&workspace),
        Task::Model => model::run(&workspace),
        Task::Demo { serve: true } => serve_check::show(&workspace),
        Task::Demo { .. } => demo::run(&workspace),
        Task::Newcomer => newcomer::run(&workspace),
        Task::Test { quick: true, arguments } => ci::quick_test(&workspace, &arguments),
        Task::Test { quick: false, arguments } => ci::test(&workspace, &arguments),
        Task::Ci => ci::run(&workspace),
        Task::Tidy => tidy::run(&workspace),
        Task::Oracle { real: true, .. } => oracle::real::check(&workspace),
        Task::Oracle { .. } => oracle::check(&workspace),
        Task::Fuzz { seconds, targets } => reliability::fuzz(&workspace, seconds, &targets),
        Task::Soak { minutes: Some(minutes), .. } => serve_check::soak(&workspace, minutes),
        Task::Soak { times, .. } => reliability::soak(&workspace, times),
        Task::Wheel => packing::wheel(&workspace),
        Task::WheelCheck { of_tests: true, .. } => packing::check_wheel_of_tests(&workspace),
        Task::WheelCheck { full, .. } => packing::check_wheel(&workspace, full),
        Task::Dist { try_in: None } => packing::archive(&workspace),
        Task::Dist { try_in: Some(system) } => packing::try_in_bare_system(&workspace, &system),
        Task::ServeCheck { faults: true } => serve_check::faults(&workspace),
        Task::ServeCheck { .. } => serve_check::run(&workspace),
        Task::Rivals(arguments) => rivals::run(&workspace, &arguments),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn arguments_after_two_dashes_reach_cargo_test_unchanged() {
        let parsed = Arguments::try_parse_from([
            "cargo xtask",
            "test",
            "--",
            "positions",
            "--",
            "--nocapture",
        ]);
        let Ok(Arguments { task: Task::Test { quick: false, arguments } }) = parsed else {
            panic!("not parsed: {parsed:?}")
        };
        assert_eq!(arguments, ["positions", "--", "--nocapture"]);
    }
}
