//! `cargo xtask tidy`: rules about the shape of this project that the compiler does not check.

mod arrows;
mod circles;
mod files;
mod links;
mod shapes;
mod unsafe_code;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command;
use crate::workspace::Workspace;

/// Reports every finding on stderr and fails if there is one.
pub fn run(workspace: &Workspace) -> Result<()> {
    let metadata = command::output(workspace.cargo().args([
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
    ]))?;
    let metadata: Value =
        serde_json::from_str(&metadata).context("cannot read the output of `cargo metadata`")?;
    let mut findings = arrows::check(&metadata)?;
    let files = files::project_files(workspace.root())?;
    findings.extend(files::check(workspace.root(), &files)?);
    findings.extend(links::check(workspace.root(), &files)?);
    findings.extend(circles::check(workspace.root(), &files)?);
    findings.extend(shapes::check(workspace.root(), &files)?);
    findings.extend(unsafe_code::check(workspace.root(), &files)?);
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    match findings.len() {
        0 => Ok(()),
        1 => bail!("tidy found 1 thing to mend"),
        n => bail!("tidy found {n} things to mend"),
    }
}
