//! NaN and infinite numbers are errors that name the place.

use reft_test_support::change_values;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::compare::bench;
use crate::files::{logits_input, model_copy, training_rows};
use crate::runs::{args, run};

/// Puts a NaN into a layer.
fn poison(model: &Path, tensor: &str) -> Result {
    change_values(&model.join("model.safetensors"), |tensors| {
        let values = tensors.get_mut(tensor).map(|(_, values)| values);
        values.into_iter().flatten().take(1).for_each(|x| *x = f32::NAN);
    })
}

fn poisoned(dir: &Path, tensor: &str) -> Result<PathBuf> {
    let model = model_copy(dir)?;
    poison(&model, tensor)?;
    Ok(model)
}

#[test]
fn logits_that_are_no_numbers_name_row_token_and_layer() -> Result {
    for (tensor, place) in [
        ("model.layers.2.mlp.down_proj.weight", "in layer 2"),
        ("model.norm.weight", "in the head"),
        ("model.embed_tokens.weight", "in the embeddings"),
    ] {
        let dir = tempfile::tempdir()?;
        let model = poisoned(dir.path(), tensor)?;
        let input = dir.path().join("in.json");
        fs::write(&input, r#"{"input_ids": [[5, 6], [7, 0]]}"#)?; // the first number is of token 0
        let output = dir.path().join("out.safetensors");
        let failed = run(args!["logits", "--model", model, "--input", input, "--output", output])?;
        assert_eq!(failed.code, Some(1), "{tensor}: {}", failed.stdout);
        let row = if place == "in the embeddings" { "row 1 at token" } else { "row 0 at token 0" };
        for words in [row, place, "NaN or infinite"] {
            assert!(failed.stderr.contains(words), "{tensor}: {}", failed.stderr);
        }
        assert!(!output.exists());
    }
    let dir = tempfile::tempdir()?;
    let (model, input) = (model_copy(dir.path())?, logits_input(dir.path())?);
    let output = dir.path().join("out.safetensors");
    let fine = run(args!["logits", "--model", model, "--input", input, "--output", output])?;
    assert_eq!(fine.code, Some(0), "{}", fine.stderr);
    Ok(())
}

#[test]
fn evaluations_that_are_no_numbers_name_their_rows() -> Result {
    let dir = tempfile::tempdir()?;
    let (model, data) =
        (poisoned(dir.path(), "model.layers.1.mlp.up_proj.weight")?, training_rows(dir.path())?);
    let failed =
        run(args!["eval", "--model", model, "--task", "lm", "--data", data, "--batch-size", "1"])?;
    assert!(
        failed.code == Some(1) && failed.stderr.contains("the loss is NaN on examples row "),
        "{} {}",
        failed.stdout,
        failed.stderr
    );
    assert!(failed.stdout.is_empty(), "{}", failed.stdout);

    let dir = bench()?;
    poison(&dir.path().join("model"), "model.layers.1.mlp.up_proj.weight")?;
    let task = dir.path().join("task.toml");
    let text = fs::read_to_string(&task)?;
    for scoring in ["log_probability", "next_token"] {
        let labels = text.replace("\"no\"", "\"n\"").replace("\"yes\"", "\"y\""); // a token each
        fs::write(&task, labels.replace("log_probability", scoring))?;
        let (model, data) = (dir.path().join("model"), dir.path().join("test.tsv"));
        let failed = run(args!["eval", "--model", model, "--task", task, "--data", data])?;
        assert!(
            failed.code == Some(1) && failed.stderr.contains("the loss is NaN on examples"),
            "{scoring}: {} {}",
            failed.stdout,
            failed.stderr
        );
    }
    Ok(())
}
