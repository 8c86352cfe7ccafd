//! The calls of the binary `reft`: all in one place, because its command line is a contract.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::command;
use crate::workspace::Workspace;

/// Builds the binary, with Cargo's progress: the first build compiles tch for minutes. No package is named, so that features are the whole
/// workspace's, as in its tests.
pub fn build(workspace: &Workspace) -> Result<()> {
    eprintln!("building reft (the first time takes some minutes)");
    command::run_as_progress(workspace.cargo().args(["build", "--bin", "reft"]))
}

/// The program, for a script that gives it its arguments.
pub fn program(workspace: &Workspace) -> Command {
    let mut cargo = workspace.cargo();
    cargo.args(["run", "--quiet", "--bin", "reft", "--"]);
    cargo
}

fn reft(workspace: &Workspace, subcommand: &str) -> Command {
    let mut program = program(workspace);
    program.arg(subcommand);
    program
}

/// Converts a GGUF file to a Hugging Face directory.
pub fn import_gguf(workspace: &Workspace, gguf: &Path, output: &Path) -> Result<()> {
    let mut import = reft(workspace, "import");
    import.args(["--from", "gguf"]).arg(gguf).arg("--output").arg(output);
    // It prints the model's place, which is temporary here.
    command::output(&mut import).map(drop)
}

/// Trains an adapter.
pub fn train(
    workspace: &Workspace,
    config: &Path,
    model: &Path,
    data: &Path,
    output: &Path,
) -> Result<()> {
    let mut train = reft(workspace, "train");
    train.arg("--config").arg(config).arg("--model").arg(model);
    train.arg("--data").arg(data).arg("--output").arg(output);
    command::run_as_progress(&mut train)
}

/// The greedy reply to one chat message.
pub fn reply(
    workspace: &Workspace,
    model: &Path,
    adapter: Option<&Path>,
    prompt: &str,
    max_new_tokens: u32,
) -> Result<String> {
    let mut generate = reft(workspace, "generate");
    generate.arg("--model").arg(model);
    if let Some(adapter) = adapter {
        generate.arg("--adapter").arg(adapter);
    }
    generate.args(["--chat", "--prompt", prompt, "--max-new-tokens", &max_new_tokens.to_string()]);
    Ok(command::output(&mut generate)?.trim().to_owned())
}

/// Describes an adapter: method, sites, parameters, size.
pub fn inspect(workspace: &Workspace, directory: &Path) -> Result<String> {
    command::output(reft(workspace, "inspect").arg(directory))
}

/// Times steps of one method, `--json`.
pub fn bench(workspace: &Workspace, model: &Path, arguments: &[String]) -> Result<String> {
    let mut bench = reft(workspace, "bench");
    bench.arg("--model").arg(model).args(arguments).arg("--json");
    command::output(&mut bench)
}
