//! Encoders on the command line: hidden states, descriptions, and commands that refuse them.

use reft_test_support::{assert_values_close, values};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Result;
use crate::files::integers;
use crate::runs::{args, oracle, run, succeed};

/// The recorded rows of an encoder as `reft logits` takes them.
fn input(dir: &Path, name: &str, more: &Value) -> Result<(PathBuf, Vec<usize>)> {
    let io = oracle("encoders").join(name).join("io.safetensors");
    let lengths: Vec<usize> = integers(&io, "attention_mask")?
        .iter()
        .map(|row| row.iter().sum::<i64>() as usize)
        .collect();
    let cut = |tensor: &str| -> Result<Vec<Vec<i64>>> {
        let rows = integers(&io, tensor)?.into_iter().zip(&lengths);
        Ok(rows.map(|(row, length)| row[..*length].to_vec()).collect())
    };
    let mut input = json!({ "input_ids": cut("input_ids")? });
    if more == "types" {
        input["token_type_ids"] = json!(cut("token_type_ids")?);
    } else if let Some(name) = more.as_str() {
        let rows = if name == "labels" { json!(cut("input_ids")?) } else { json!(lengths) };
        input[name] = rows;
    }
    let path = dir.join("input.json");
    fs::write(&path, input.to_string())?;
    Ok((path, lengths))
}

#[test]
fn hidden_states_of_encoders_equal_those_of_transformers() -> Result {
    let dir = tempfile::tempdir()?;
    let output = dir.path().join("states.safetensors");
    for (name, blocks, more, adapter, expected) in [
        ("bert", 3, json!(null), false, "last"),
        ("bert", 3, json!("types"), false, "typed.last"),
        ("roberta_classifier", 3, json!(null), true, "lora.last"),
        ("modernbert", 4, json!(null), false, "last"),
    ] {
        let folder = oracle("encoders").join(name);
        let (input, lengths) = input(dir.path(), name, &more)?;
        let recorded = values(&folder.join("io.safetensors"))?;
        for padding in [&args![][..], &args!["--left-pad"]] {
            let command = args!["logits", "--hidden-states", "--model", folder, "--input", input];
            let own = if adapter { args!["--adapter", folder.join("lora")] } else { args![] };
            let said =
                succeed([command, args!["--output", output], own, padding.to_vec()].concat())?;
            assert!(said.stdout.contains("hidden states of 3 rows"), "{}", said.stdout);
            let found = values(&output)?;
            assert_eq!(found.len(), blocks + 2, "{:?}", found.keys());
            let mut pairs = vec![("hidden.last".to_owned(), expected.to_owned())];
            if expected == "last" {
                pairs.push(("hidden.0".to_owned(), "embeddings".to_owned()));
                let block = |i| (format!("hidden.{}", i + 1), format!("block.{i}"));
                pairs.extend((0..blocks).map(block));
            }
            for (ours, theirs) in pairs {
                let ((shape, found), (_, expected)) = (&found[&ours], &recorded[&theirs]);
                let (t, d) = (shape[1], shape[2]);
                for (row, length) in lengths.iter().enumerate() {
                    let tokens = row * t * d..(row * t + length) * d;
                    let what = format!("{name}: {ours}, row {row}");
                    assert_values_close(&what, &found[tokens.clone()], &expected[tokens], 4e-5);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn inspect_says_that_a_model_is_an_encoder() -> Result {
    for (name, parts) in [
        ("bert", &["an encoder", "LayerNorm", "types of tokens", "no head is read"][..]),
        ("roberta", &["position embeddings", "context 46 tokens"]),
        ("modernbert", &["Wqkv", "a window of 6 tokens in 2 layers", "RoPE θ 70"]),
    ] {
        let said = succeed(args!["inspect", oracle("encoders").join(name)])?.stdout;
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            assert!(said.contains(part), "{name}: {part} is not in {said}");
        }
    }
    Ok(())
}

#[test]
fn what_needs_next_tokens_refuses_an_encoder_in_one_message() -> Result {
    let dir = tempfile::tempdir()?;
    let (model, output) = (oracle("encoders/bert"), dir.path().join("out"));
    let data = dir.path().join("data.jsonl");
    fs::write(&data, "{\"input_ids\": [5, 6, 7], \"prompt_length\": 2}\n")?;
    let bench = crate::compare::bench()?;
    let config = bench.path().join("compare.toml");
    let das = oracle("../../recipes/das/pronoun.toml");
    let sizes = args!["--batch-size", "1", "--prompt-length", "4", "--response-length", "2"];
    for command in [
        args!["train", "--model", model, "--data", data, "--output", output],
        args!["generate", "--model", model, "--prompt", "x"],
        args!["chat", "--model", model],
        args!["eval", "--model", model, "--task", "lm", "--data", data],
        [args!["bench", "--model", model, "--methods", "floor"], sizes.clone()].concat(),
        [args!["plan", "--model", model, "--method", "loreft"], sizes].concat(),
        args!["compare", "--model", model, "--config", config, "--output", output],
        args!["das", "--model", model, "--task", das, "--output", output],
        args![
            "steer",
            "--model",
            model,
            "--layer",
            "1",
            "--positive",
            data,
            "--negative",
            data,
            "--prompt",
            "x"
        ],
    ] {
        let refused = run(&command)?;
        assert_eq!(refused.code, Some(1), "{command:?}: {}", refused.stderr);
        for part in
            ["bert is an encoder, which predicts no next tokens", "reft logits --hidden-states"]
        {
            assert!(refused.stderr.contains(part), "{command:?}: {}", refused.stderr);
        }
        assert_eq!(refused.stderr.matches("bert is an encoder").count(), 1, "{}", refused.stderr);
    }
    assert!(!output.exists());
    Ok(())
}

#[test]
fn an_encoder_is_asked_for_hidden_states_of_whole_texts() -> Result {
    let dir = tempfile::tempdir()?;
    let output = dir.path().join("states.safetensors");
    for (name, more, states, said) in [
        (
            "bert",
            json!(null),
            false,
            "bert is an encoder, which has no logits; give --hidden-states",
        ),
        ("bert", json!("prompt_lengths"), true, "whose rows are whole texts"),
        ("bert", json!("labels"), true, "labels are there, and bert is an encoder"),
    ] {
        let (input, _) = input(dir.path(), name, &more)?;
        let model = oracle("encoders").join(name);
        let command = args!["logits", "--model", model, "--input", input, "--output", output];
        let refused =
            run([command, if states { args!["--hidden-states"] } else { args![] }].concat())?;
        assert!(refused.stderr.contains(said), "{}", refused.stderr);
        assert!(!output.exists());
    }
    let input = dir.path().join("types.json");
    fs::write(&input, r#"{"input_ids": [[5, 6]], "token_type_ids": [[0, 1]]}"#)?;
    let model = oracle("encoders/modernbert");
    let command = args!["logits", "--model", model, "--input", input, "--output", output];
    let refused = run([command, args!["--hidden-states"]].concat())?;
    assert!(refused.stderr.contains("modernbert has no types of tokens"), "{}", refused.stderr);
    Ok(())
}

/// A LoRA with a head beside it, merged into an encoder, gives the same hidden states.
#[test]
fn a_merged_encoder_gives_the_same_hidden_states() -> Result {
    let dir = tempfile::tempdir()?;
    let (output, merged) = (dir.path().join("states.safetensors"), dir.path().join("merged"));
    let folder = oracle("encoders/roberta_classifier");
    let (input, _) = input(dir.path(), "roberta_classifier", &json!(null))?;
    let states = |more: Vec<std::ffi::OsString>| -> Result<Vec<f32>> {
        let command = args!["logits", "--hidden-states", "--input", input, "--output", output];
        succeed([command, more].concat())?;
        Ok(values(&output)?["hidden.last"].1.clone())
    };
    let (lora, model) = (folder.join("lora"), &folder);
    let adapted = states(args!["--model", model, "--adapter", lora])?;
    succeed(args!["export", "--merge", "--model", model, "--adapter", lora, "--output", merged])?;
    assert_values_close("merged", &states(args!["--model", merged])?, &adapted, 2e-5);
    Ok(())
}
