//! The training recipes that come with the project.

use std::path::Path;

use crate::Result;
use crate::files::many_rows;
use crate::runs::{args, oracle, run};

const RECIPES: [&str; 8] = [
    "arithmetic",
    "commonsense",
    "composition",
    "emoji",
    "few-shot-chat",
    "glue",
    "llama-3-8b-24gb",
    "ultrafeedback",
];

/// Layers, steps and held-out examples are those of a tiny model and a small file; everything else is the recipe's.
#[test]
fn every_training_recipe_is_a_run() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 4)?;
    for name in RECIPES {
        let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
        let (recipe, output) = (recipes.join(name).with_extension("toml"), dir.path().join(name));
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
    }
    Ok(())
}
