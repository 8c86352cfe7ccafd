//! `cargo xtask rivals`: the Python reference systems and this project on the same batches, in turns.

mod comparison;
mod configuration;

use std::io::{self, Write};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::Value;

use crate::rivals::comparison::{Line, Turns};
use crate::rivals::configuration::{CONFIGURATIONS, Configuration};
use crate::workspace::{self, Workspace};
use crate::{command, model, python_environment, reft, setup};

const SCRIPT: &str = "tools/rivals/measure.py";
const LLAMA_CPP_SCRIPT: &str = "tools/rivals/llama_cpp.py";

/// Which configurations are timed, and how often.
#[derive(Debug, Args)]
pub struct RivalsArgs {
    /// Configurations to time [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = names())]
    only: Vec<String>,
    /// Turns of each side: rival, ours, rival, ours, …
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Timed steps of a turn, after one warm-up step
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// CPU threads of both sides
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
    /// Use today's PEFT and transformers with torch 2.15, instead of the versions that pyreft works with
    ///
    /// LoReFT's configurations are left out.
    #[arg(long)]
    newest: bool,
    /// Time generation beside llama.cpp instead; npm and git are needed
    ///
    /// It is timed with f32, bf16, Q8_0 and Q4_K, on one thread and on two.
    #[arg(long, conflicts_with_all = ["only", "steps", "threads", "newest"])]
    llama_cpp: bool,
}

fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(CONFIGURATIONS.map(|configuration| configuration.name))
}

/// Times the configurations on the demo model and prints a table, line by line.
pub fn run(workspace: &Workspace, arguments: &RivalsArgs) -> Result<()> {
    setup::ready(workspace)?;
    model::ready(workspace)?;
    reft::build(workspace)?;
    if arguments.llama_cpp {
        return beside_llama_cpp(workspace, arguments.rounds);
    }
    let cache = workspace::cache_dir()?;
    let python = || match arguments.newest {
        true => python_environment::newest(&cache),
        false => python_environment::ready(&cache)?.python("reference"),
    };
    let mut out = io::stdout().lock();
    write!(out, "{}", Line::HEAD)?;
    let asked = |one: &&Configuration| {
        let is_named = arguments.only.iter().any(|name| name == one.name);
        (arguments.only.is_empty() || is_named) && !(arguments.newest && one.needs_pyreft())
    };
    for configuration in CONFIGURATIONS.iter().filter(asked) {
        let mut turns = Turns::default();
        for round in 1..=arguments.rounds {
            eprintln!("{}: round {round} of {}", configuration.name, arguments.rounds);
            turns.rival.push(rival(workspace, python()?, configuration, arguments)?);
            turns.ours.push(ours(workspace, configuration, arguments)?);
        }
        for line in turns.lines(configuration).with_context(|| configuration.name)? {
            write!(out, "{}", line.markdown())?;
        }
        out.flush()?;
    }
    Ok(())
}

/// Generation beside llama.cpp; downloads and builds stay in the cache.
fn beside_llama_cpp(workspace: &Workspace, rounds: u32) -> Result<()> {
    let mut python = Command::new("python3");
    python.current_dir(workspace.root()).arg(LLAMA_CPP_SCRIPT);
    python.args(["--reft", "cargo run --quiet --bin reft --"]);
    python.arg("--model").arg(workspace.model()).arg("--rounds").arg(rounds.to_string());
    python.arg("--work").arg(workspace::cache_dir()?.join("llama-cpp"));
    command::run(&mut python)
}

/// One turn of the reference system.
fn rival(
    workspace: &Workspace,
    mut python: Command,
    configuration: &Configuration,
    arguments: &RivalsArgs,
) -> Result<Value> {
    python.current_dir(workspace.root()).env("OMP_NUM_THREADS", arguments.threads.to_string());
    python.arg(SCRIPT).arg(configuration.case(arguments.steps as usize).to_string());
    python.arg(workspace.model()).arg(arguments.threads.to_string());
    let printed = command::output(&mut python)?;
    // packages print other lines on stdout before the result
    let result = printed.lines().last().unwrap_or_default();
    serde_json::from_str(result).with_context(|| format!("{SCRIPT} printed no result: {printed:?}"))
}

/// One turn of this project.
fn ours(
    workspace: &Workspace,
    configuration: &Configuration,
    arguments: &RivalsArgs,
) -> Result<Value> {
    let flags = configuration.flags(arguments.steps as usize, arguments.threads as usize);
    let printed = reft::bench(workspace, &workspace.model(), &flags)?;
    let mut report: Value = serde_json::from_str(&printed).context("reft bench printed no JSON")?;
    match report["rows"][0].take() {
        Value::Null => bail!("reft bench printed no row"),
        row => Ok(row),
    }
}
