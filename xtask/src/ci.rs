//! `cargo xtask test` and `cargo xtask ci`.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::workspace::Workspace;
use crate::{command, model, setup, tidy};

/// Runs `cargo test --workspace` with `arguments`, after setting up what is missing.
pub fn test(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    setup::ready(workspace)?;
    model::ready(workspace)?;
    command::run(workspace.cargo().args(["test", "--workspace"]).args(arguments))
}

/// Runs every check, cheapest first; the first that fails ends it.
pub fn run(workspace: &Workspace) -> Result<()> {
    let started = Instant::now();
    step("fmt", || command::run(workspace.cargo().args(["fmt", "--all", "--check"])))?;
    step("tidy", || tidy::run(workspace))?;
    step("setup", || setup::run(workspace, false))?;
    step("clippy", || {
        let lints = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        command::run(workspace.cargo().args(lints))
    })?;
    // RUSTDOCFLAGS hides the run path of libtorch/cargo.toml; only doc tests need that, and those run under `test`.
    step("doc", || {
        let doc = ["doc", "--workspace", "--no-deps"];
        command::run(workspace.cargo().env("RUSTDOCFLAGS", "-D warnings").args(doc))
    })?;
    step("package", || package(workspace))?;
    step("test", || test(workspace, &[]))?;
    eprintln!("== ci passed in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Packs the crates as for the registry, without building them again: what is published has all its files and versions.
fn package(workspace: &Workspace) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo.args(["package", "--workspace", "--no-verify", "--allow-dirty", "--quiet"]);
    command::run(cargo.args(["--exclude", "xtask", "--exclude", "reft-test-support"]))
}

fn step(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("== {name}");
    let started = Instant::now();
    check().with_context(|| {
        format!("the step `{name}` failed after {:.1} s", started.elapsed().as_secs_f64())
    })?;
    eprintln!("== {name} passed in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}
