//! `cargo xtask serve-check`: clients that people use, against a running server; and what takes too long for the tests, faults and memory.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;
use crate::{command, demo, model, reft, setup};

/// What the clients are played with; tools/serve/clients.py is written for these.
const CLIENTS: [&str; 2] = ["openai==3.57.0", "litellm==1.110.2"];
const SCRIPT: &str = "tools/serve/clients.py";

/// Serves the demo's adapter until somebody ends it; the server says where it listens.
pub fn show(workspace: &Workspace) -> Result<()> {
    let adapter = demo_adapter(workspace)?;
    command::run(&mut server(workspace, &adapter, "8000"))
}

/// The demo's adapter, which is trained if it is not there, and all that serving it takes.
fn demo_adapter(workspace: &Workspace) -> Result<PathBuf> {
    let adapter = workspace.root().join("runs/demo/emoji");
    if !adapter.is_dir() {
        demo::run(workspace)?;
    }
    setup::ready(workspace)?;
    model::ready(workspace)?;
    reft::build(workspace)?;
    Ok(adapter)
}

/// Serves the demo's adapter, and lets the clients talk to it.
pub fn run(workspace: &Workspace) -> Result<()> {
    let adapter = demo_adapter(workspace)?;
    let environment = tempfile::tempdir().context("cannot make a folder for the clients")?;
    install(environment.path())?;
    let mut server = server(workspace, &adapter, "0");
    let mut server = server.stderr(Stdio::piped()).spawn().context("cannot start the server")?;
    let played = address(&mut server).and_then(|address| {
        let mut script = Command::new(environment.path().join("bin/python"));
        script.env_remove("PYTHONPATH").arg(workspace.root().join(SCRIPT));
        let name = workspace.model().file_name().context("the model has no name")?.to_owned();
        command::run(script.arg(address).arg(name).arg("emoji"))
    });
    server.kill().context("cannot end the server")?;
    server.wait().context("cannot end the server")?;
    played
}

/// Faults and swaps by the thousand (`crates/reft-cli/tests/commands/serving_faults.rs` and `serving_load.rs`), each a test by its name. One
/// at a time: what waits for the machine is not told from what hangs.
pub fn faults(workspace: &Workspace) -> Result<()> {
    setup::ready(workspace)?;
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--workspace", "--test", "commands", "--"]);
    cargo.args(["serving_faults::", "serving_load::", "--nocapture", "--test-threads", "1"]);
    command::run(cargo.env("REFT_ALL_FAULTS", "1"))
}

/// Load for so many minutes, and memory before and after (`crates/reft-cli/tests/commands/serving_load.rs`).
pub fn soak(workspace: &Workspace, minutes: f64) -> Result<()> {
    setup::ready(workspace)?;
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--workspace", "--test", "commands", "--"]);
    cargo.args(["--ignored", "serving_load::", "--nocapture"]);
    command::run(cargo.env("REFT_SOAK_MINUTES", minutes.to_string()))
}

/// The clients in an environment of their own.
fn install(environment: &Path) -> Result<()> {
    let mut venv = command::python()?;
    command::run_as_progress(venv.args(["-m", "venv"]).arg(environment))
        .context("cannot make a Python environment (Debian: apt install python3-venv)")?;
    let mut pip = Command::new(environment.join("bin/pip"));
    pip.env_remove("PYTHONPATH").args(["install", "--quiet", "--no-input"]);
    command::run_as_progress(pip.arg("--disable-pip-version-check").args(CLIENTS))
}

/// The command that serves an adapter.
fn server(workspace: &Workspace, adapter: &Path, port: &str) -> Command {
    let mut server = reft::program(workspace);
    server.args(["serve", "--port", port, "--model"]).arg(workspace.model());
    server.arg("--adapter").arg(format!("emoji={}", adapter.display()));
    server
}

/// Where a server listens, when it is ready.
fn address(server: &mut Child) -> Result<String> {
    let mut lines = BufReader::new(server.stderr.take().context("no stderr")?).lines();
    while let Some(line) = lines.next().transpose().context("cannot read what the server says")? {
        eprintln!("{line}");
        if let Some((address, _)) = line.split_once(" is ready") {
            // what it logs is taken, so that it never waits
            let address = address.to_owned();
            std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
            return Ok(address);
        }
    }
    bail!("the server ended before it was ready; its own messages are above")
}
