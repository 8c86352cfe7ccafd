//! README, docs and recipes against the program: every command line in them is run, on tiny models and small files under the names in the
//! lines.

mod lines;
mod small_files;
mod world;

use std::time::Instant;

use crate::Result;
use lines::{all, root};
use world::World;

#[test]
fn every_documented_command_line_runs() -> Result {
    let (lines, world) = (all()?, World::new()?);
    assert!(lines.len() > 90, "only {} command lines were found", lines.len());
    let mut wrong = Vec::new();
    for line in lines {
        let (whole, begun) =
            (format!("{}: reft {}", line.place, line.words.join(" ")), Instant::now());
        if let Err(said) = world.run(&line.words) {
            wrong.push(format!("{whole}\n    {said}"));
        }
        eprintln!("{:.1} s: {whole}", begun.elapsed().as_secs_f64());
    }
    assert!(wrong.is_empty(), "{} lines fail:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// Files of this project that a command line names are there; files that a run writes are not.
#[test]
fn the_files_that_a_documented_line_reads_are_there() -> Result {
    let own = ["recipes/", "examples/", "tests/", "tools/", "benches/"];
    let is_own = |word: &&String| own.iter().any(|folder| word.starts_with(folder));
    let mut missing = Vec::new();
    for line in all()? {
        let named = line.words.iter().filter(is_own).filter(|word| !root().join(word).exists());
        missing.extend(named.map(|word| format!("{}: {word}", line.place)));
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    Ok(())
}
