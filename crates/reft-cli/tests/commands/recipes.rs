//! The recipes that come with the project.

use std::fs;
use std::path::Path;

use crate::Result;
use crate::files::many_rows;
use crate::runs::{args, oracle, run};

/// Every recipe is read and accepted: a run with it fails only for the layers that the tiny model lacks, or not at all.
#[test]
fn every_recipe_is_a_run() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 4)?;
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut found = Vec::new();
    for entry in fs::read_dir(recipes)? {
        let recipe = entry?.path();
        let name = recipe.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let output = dir.path().join(&name);
        let more = args![
            "--model",
            oracle("tiny_llama"),
            "--data",
            data,
            "--output",
            output,
            "--layers",
            "1;3",
            "--max-steps",
            "1",
            "--validation",
            "0",
            "--threads",
            "1"
        ];
        let run = run([args!["train", "--config", recipe], more].concat())?;
        assert_eq!(run.code, Some(0), "{name}: {}", run.stderr);
        found.push(name);
    }
    found.sort();
    let expected = ["arithmetic", "commonsense", "emoji", "few-shot-chat", "glue", "ultrafeedback"];
    assert_eq!(found, expected);
    Ok(())
}
