//! `cargo xtask serve-check`: common clients against a running server, and checks of faults and memory that take too long for the tests.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;
use crate::{command, demo, model, reft, setup};

/// The clients; tools/serve/clients.py and tools/serve/browser.py are written for these versions.
const CLIENTS: [&str; 3] = ["openai==3.57.0", "litellm==1.110.2", "playwright==1.65.2"];
const SCRIPT: &str = "tools/serve/clients.py";
const PAGE_SCRIPT: &str = "tools/serve/browser.py";
/// Where pictures of the page go.
const PICTURES: &str = "runs/serve-check";

/// Serves the demo's adapter until it is stopped; the server prints its address.
pub fn show(workspace: &Workspace) -> Result<()> {
    let adapter = demo_adapter(workspace)?;
    command::run(&mut server(workspace, &adapter, "8000"))
}

/// Returns the demo's adapter. Trains it if it is missing, and prepares everything else that serving needs.
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

/// Serves the demo's adapter, and lets the clients talk to it; then the page, in a browser.
pub fn run(workspace: &Workspace) -> Result<()> {
    let adapter = demo_adapter(workspace)?;
    let folder = tempfile::tempdir().context("cannot make a folder for the clients")?;
    let environment = folder.path().join("environment");
    install(&environment)?;
    let play = |script: &str, arguments: &[&OsStr], mut server: Command| {
        let mut server =
            server.stderr(Stdio::piped()).spawn().context("cannot start the server")?;
        let played = address(&mut server).and_then(|address| {
            let mut python = Command::new(environment.join("bin/python"));
            python.env_remove("PYTHONPATH").arg(workspace.root().join(script));
            let name = workspace.model().file_name().context("the model has no name")?.to_owned();
            command::run(python.arg(address).arg(name).args(arguments))
        });
        server.kill().context("cannot end the server")?;
        server.wait().context("cannot end the server")?;
        played
    };
    play(SCRIPT, &["emoji".as_ref()], server(workspace, &adapter, "0"))?;

    let adapters = folder.path().join("adapters");
    versions(workspace, &adapter, &adapters)?;
    let mut server = reft::program(workspace);
    server.args(["serve", "--port", "0", "--allow-load", "--model"]).arg(workspace.model());
    server.arg("--adapter").arg(format!("swapped={}", adapters.join("trained").display()));
    server.arg("--adapters-dir").arg(&adapters);
    let pictures = workspace.root().join(PICTURES);
    fs::create_dir_all(&pictures).with_context(|| format!("cannot create {PICTURES}"))?;
    play(PAGE_SCRIPT, &[pictures.as_ref()], server)
}

/// Makes a directory with the demo's adapter and an adapter that is as good as untrained.
fn versions(workspace: &Workspace, adapter: &Path, adapters: &Path) -> Result<()> {
    let trained = adapters.join("trained");
    fs::create_dir_all(&trained).context("cannot make a folder of adapters")?;
    for entry in fs::read_dir(adapter).context("cannot read the demo's adapter")? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), trained.join(entry.file_name()))?;
        }
    }
    let mut train = reft::program(workspace);
    train.args(["train", "--max-steps", "1", "--config", demo::RECIPE]);
    train.args(["--data", demo::DATA, "--model"]).arg(workspace.model());
    command::run_as_progress(train.arg("--output").arg(adapters.join("untrained")))
}

/// Thousands of faults and swaps (`crates/reft-cli/tests/commands/serving_faults.rs` and `serving_load.rs`), each a named test. The tests run
/// one at a time, because a test that waits for the machine looks like a test that hangs.
pub fn faults(workspace: &Workspace) -> Result<()> {
    setup::ready(workspace)?;
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--workspace", "--test", "commands", "--"]);
    cargo.args(["serving_faults::", "serving_load::", "--nocapture", "--test-threads", "1"]);
    command::run(cargo.env("REFT_ALL_FAULTS", "1"))
}

/// Load for this many minutes, and memory before and after (`crates/reft-cli/tests/commands/serving_load.rs`).
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
            // the log is read, so that the server never waits for its reader
            let address = address.to_owned();
            std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
            return Ok(address);
        }
    }
    bail!("the server ended before it was ready; its own messages are above")
}
