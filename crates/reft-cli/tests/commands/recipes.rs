//! The training recipes that come with the project.

use std::fs;
use std::path::Path;

use crate::Result;
use crate::files::many_rows;
use crate::runs::{args, oracle, run};

const RECIPES: [&str; 9] = [
    "arithmetic",
    "classes",
    "commonsense",
    "composition",
    "emoji",
    "few-shot-chat",
    "glue",
    "llama-3-8b-24gb",
    "ultrafeedback",
];

/// Layers, steps and held-out examples are changed to fit a tiny model and a small file; the recipe sets all other options.
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

/// Model, steps and held-out examples are changed; the recipe sets all other options.
#[test]
fn every_recipe_of_glue_is_a_run() -> Result {
    let dir = tempfile::tempdir()?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/glue");
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let recipe = entry?.path();
        let name = recipe.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text: toml::Table = fs::read_to_string(&recipe)?.parse()?;
        let columns = text["columns"].as_str().ok_or("columns")?;
        let is_of_label = |column: &&str| *column == "label";
        let of_file: Vec<&str> =
            columns.split(',').filter_map(|column| Some(column.split_once('=')?.1)).collect();
        let row = |label: &str| -> String {
            let cells = of_file.iter().map(|c| if is_of_label(c) { label } else { "the café" });
            cells.collect::<Vec<_>>().join(",")
        };
        let data = dir.path().join("data.csv");
        fs::write(&data, format!("{}\n{}\n{}\n", of_file.join(","), row("0"), row("1")))?;
        let args = args!["train", "--config", recipe, "--model", oracle("encoders/roberta")];
        let more = args!["--data", data, "--validation-data", data, "--threads", "1"];
        let of_run = args!["--output", dir.path().join(&name), "--max-steps", "1"];
        let run = run([args, more, of_run].concat())?;
        assert_eq!(run.code, Some(0), "{name}: {}", run.stderr);
        names.push(name);
    }
    names.sort();
    assert_eq!(names, ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]);
    Ok(())
}
