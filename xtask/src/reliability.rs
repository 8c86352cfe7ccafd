//! `cargo xtask fuzz` and `cargo xtask soak`: checks that take too long for continuous integration.

use std::fs;
use std::io::{self, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;
use crate::{command, setup};

/// Most bytes of a target's input: more than any of the corpus, and few enough to be fast.
const LONGEST: &str = "-max_len=32768";

/// Feeds every parser of external files (`fuzz/src/lib.rs`), or the named parsers, for this many seconds each. It fails if a parser panics,
/// takes 10 s for an input, or takes more than 2 GB.
pub fn fuzz(workspace: &Workspace, seconds: u32, targets: &[String]) -> Result<()> {
    setup::ready(workspace)?;
    let folder = workspace.root().join("fuzz");
    if !command::succeeds(Command::new("cargo").args(["+nightly", "fuzz", "--version"])) {
        bail!(
            "cargo-fuzz with a nightly toolchain is needed: `rustup toolchain install nightly`, then `cargo install cargo-fuzz`"
        );
    }
    let mut names: Vec<String> = fs::read_dir(folder.join("targets"))?
        .map(|entry| Ok(entry?.path().file_stem().unwrap_or_default().to_string_lossy().into()))
        .collect::<Result<_>>()?;
    names.sort();
    if let Some(unknown) = targets.iter().find(|target| !names.contains(target)) {
        bail!("there is no fuzz target {unknown}; there are {}", names.join(", "));
    }
    names.retain(|name| targets.is_empty() || targets.contains(name));
    let mut out = io::stdout().lock();
    writeln!(out, "| target | inputs | coverage | found |\n| --- | --- | --- | --- |")?;
    let mut failed = Vec::new();
    for name in &names {
        // findings go into the first folder; the second is the tree's
        let [found, corpus] =
            ["target/corpus", "corpus"].map(|parent| folder.join(parent).join(name));
        fs::create_dir_all(&found)?;
        let mut run = Command::new("cargo");
        // the calling Cargo passes its toolchain on in these variables, which would override `+nightly`
        run.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN").env_remove("LIBTORCH");
        // cargo fuzz sets its own flags, which replace the run path of libtorch/cargo.toml
        run.env("LD_LIBRARY_PATH", workspace.libtorch().join("lib"));
        run.current_dir(workspace.root()).args(["+nightly", "fuzz", "run", "--sanitizer", "none"]);
        run.arg(name).args([found, corpus]).arg("--");
        run.args([
            &format!("-max_total_time={seconds}"),
            LONGEST,
            "-timeout=10",
            "-rss_limit_mb=2048",
        ]);
        let output = run.stdout(Stdio::inherit()).stderr(Stdio::piped()).output();
        let output = output.context("cannot start cargo fuzz")?;
        let said = String::from_utf8_lossy(&output.stderr);
        let Some(result) = Found::read(&said) else {
            eprintln!("{said}");
            bail!("fuzzing {name} did not begin; its messages are above");
        };
        let (inputs, coverage) = (result.inputs, result.coverage);
        writeln!(out, "| {name} | {inputs} | {coverage} | {} |", result.shown())?;
        if !output.status.success() {
            eprintln!("{said}");
            failed.push(name.clone());
        }
    }
    if !failed.is_empty() {
        bail!("inputs that break {} are in fuzz/artifacts", failed.join(", "));
    }
    Ok(())
}

/// The result of a run, as libFuzzer prints it.
struct Found {
    inputs: u64,
    coverage: u64,
    breaks: Option<String>,
}

impl Found {
    fn read(said: &str) -> Option<Self> {
        let is_status = |line: &&str| line.starts_with('#') && line.contains("cov: ");
        let last = said.lines().rfind(is_status)?;
        let inputs = last[1..].split_whitespace().next()?.parse().ok()?;
        let coverage = last.split("cov: ").nth(1)?.split_whitespace().next()?.parse().ok()?;
        let breaks = said.lines().find(|line| line.contains("ERROR: libFuzzer"));
        let panic = said.lines().find(|line| line.contains("panicked at"));
        Some(Self { inputs, coverage, breaks: panic.or(breaks).map(str::to_owned) })
    }

    fn shown(&self) -> &str {
        self.breaks.as_deref().unwrap_or("nothing")
    }
}

/// Kills runs, fills disks and removes directories, `times` times each (`crates/reft-cli/tests/commands/soak.rs`).
pub fn soak(workspace: &Workspace, times: u32) -> Result<()> {
    setup::ready(workspace)?;
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--workspace", "--test", "commands", "--"]);
    cargo.args(["--ignored", "soak::", "--nocapture", "--test-threads", "2"]);
    command::run(cargo.env("REFT_SOAK_TIMES", times.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libfuzzer_s_last_words_are_read() -> Result<()> {
        let said = "INFO: seed\n#2\tINITED cov: 7 ft: 8\nthread 'x' panicked at a.rs:1:2:\n#4096\tpulse  cov: 31 ft: 90 corp: 3/9b\n";
        let found = Found::read(said).context("nothing is read")?;
        assert_eq!((found.inputs, found.coverage), (4096, 31));
        assert_eq!(found.shown(), "thread 'x' panicked at a.rs:1:2:");
        assert!(Found::read("error: no such target").is_none());
        Ok(())
    }
}
