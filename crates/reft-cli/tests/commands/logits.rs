//! `reft logits` and `reft import` against transformers and pyreft.

use reft_test_support::{Values, assert_values_close, values};
use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::files::{LENGTHS, logits_input};
use crate::runs::{args, importing, oracle, run, succeed};

/// f32 on both sides, four layers of size 64, logits up to 4: measured 2e-6.
const TOLERANCE: f64 = 2e-5;

fn logits(dir: &Path, input: &Path, more: &[std::ffi::OsString]) -> Result<Values> {
    let output = dir.join("logits.safetensors");
    let mut all =
        args!["logits", "--model", oracle("tiny_llama"), "--input", input, "--output", output];
    all.extend_from_slice(more);
    succeed(all)?;
    values(&output)
}

/// Compares rows at their tokens. After a row's end, `found` must be 0.
fn assert_rows(what: &str, found: &(Vec<usize>, Vec<f32>), expected: &(Vec<usize>, Vec<f32>)) {
    assert_eq!(found.0, expected.0, "{what}: another shape");
    let (t, width) = (found.0[1], found.0[2]);
    for (row, length) in LENGTHS.into_iter().enumerate() {
        let start = row * t * width;
        let tokens = start..start + length * width;
        let name = format!("{what}, row {row}");
        let expected = &expected.1[tokens.clone()];
        // f32 of hidden states up to 21
        let largest = expected.iter().fold(10f32, |largest, x| largest.max(x.abs()));
        assert_values_close(
            &name,
            &found.1[tokens.clone()],
            expected,
            TOLERANCE * f64::from(largest) / 10.0,
        );
        assert!(
            found.1[tokens.end..start + t * width].iter().all(|x| *x == 0.0),
            "{name}: padding"
        );
    }
}

#[test]
fn logits_loss_and_hidden_states_of_the_base_model_equal_those_of_transformers() -> Result {
    let dir = tempfile::tempdir()?;
    let input = logits_input(dir.path())?;
    let expected = values(&oracle("tiny_io.safetensors"))?;
    for padding in [&args![][..], &args!["--left-pad"]] {
        let found = logits(dir.path(), &input, &[&args!["--hidden-states"], padding].concat())?;
        assert_rows("logits", &found["logits"], &expected["base_logits"]);
        assert_rows("hidden.0", &found["hidden.0"], &expected["embed.output"]);
        for layer in 0..4 {
            let (ours, theirs) = (format!("hidden.{}", layer + 1), format!("layer_{layer}.output"));
            assert_rows(&ours, &found[&ours], &expected[&theirs]);
        }
        assert_eq!(found["loss"].0, [1]);
        assert_values_close("loss", &found["loss"].1, &expected["base_loss"].1, TOLERANCE);
        assert_eq!(found.len(), 7, "logits, loss and five hidden states");
    }
    Ok(())
}

pub fn import(dir: &Path, name: &str) -> Result<PathBuf> {
    let adapter = dir.join(name);
    let model = args!["--model", oracle("tiny_llama")];
    succeed([importing(name, &adapter), model].concat())?;
    Ok(adapter)
}

#[test]
fn adapters_imported_from_pyreft_give_its_logits_padded_on_either_side() -> Result {
    let dir = tempfile::tempdir()?;
    let input = logits_input(dir.path())?;
    let base = logits(dir.path(), &input, &[])?;
    for name in ["loreft", "noreft", "consreft", "lobireft", "direft", "nodireft"] {
        let adapter = import(dir.path(), name)?;
        let expected = values(&oracle(&format!("reft_saved/{name}.logits.safetensors")))?;
        let initial = values(&oracle(&format!("reft/{name}.safetensors")))?;
        for padding in [&args![][..], &args!["--left-pad"]] {
            let more = [&args!["--adapter", adapter], padding].concat();
            let found = logits(dir.path(), &input, &more)?;
            assert_rows(name, &found["logits"], &expected["logits_before_save"]);
            assert_values_close(name, &found["loss"].1, &initial["loss"].1, TOLERANCE);
            let pairs = found["logits"].1.iter().zip(&base["logits"].1);
            assert!(
                f64::from(pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max))
                    > 100.0 * TOLERANCE,
                "{name} edits nothing"
            );
        }
    }
    Ok(())
}

#[test]
fn an_adapter_imported_without_its_model_runs_and_says_what_is_not_known_of_it() -> Result {
    let dir = tempfile::tempdir()?;
    let (named, unnamed) = (import(dir.path(), "loreft")?, dir.path().join("unnamed"));
    let run = succeed(importing("loreft", &unnamed))?;
    for word in ["does not name its base model", "hidden size 64", "--model"] {
        assert!(run.stderr.contains(word), "{word:?} is not in {}", run.stderr);
    }
    let input = logits_input(dir.path())?;
    let of = |adapter: &Path| logits(dir.path(), &input, &args!["--adapter", adapter]);
    assert_eq!(of(&unnamed)?["logits"], of(&named)?["logits"]);
    Ok(())
}

#[test]
fn without_prompt_lengths_a_whole_row_is_prompt() -> Result {
    let dir = tempfile::tempdir()?;
    let adapter = import(dir.path(), "loreft")?;
    let (whole, given) = (dir.path().join("whole.json"), dir.path().join("given.json"));
    fs::write(&whole, r#"{"input_ids": [[5, 6, 7, 8, 9, 10, 11], [3, 4, 5, 6, 7]]}"#)?;
    fs::write(
        &given,
        r#"{"input_ids": [[5, 6, 7, 8, 9, 10, 11], [3, 4, 5, 6, 7]], "prompt_lengths": [7, 5]}"#,
    )?;
    let more = args!["--adapter", adapter];
    let (found, expected) =
        (logits(dir.path(), &whole, &more)?, logits(dir.path(), &given, &more)?);
    assert_eq!(found, expected);
    assert!(!found.contains_key("loss"));
    Ok(())
}

#[test]
fn two_adapters_are_both_active() -> Result {
    let dir = tempfile::tempdir()?;
    let input = logits_input(dir.path())?;
    let (a, b) = (import(dir.path(), "lobireft")?, import(dir.path(), "direft")?);
    let both = logits(dir.path(), &input, &args!["--adapter", a, "--adapter", b])?;
    for one in [a, b] {
        let alone = logits(dir.path(), &input, &args!["--adapter", one])?;
        let pairs = both["logits"].1.iter().zip(&alone["logits"].1);
        assert!(
            pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f32::max) > 0.05,
            "one of the two is not active"
        );
    }
    Ok(())
}

#[test]
fn inputs_that_do_not_fit_together_are_errors() -> Result {
    let dir = tempfile::tempdir()?;
    let cases = [
        (
            r#"{"input_ids": [[1, 2], [3]], "prompt_lengths": [2]}"#,
            "prompt_lengths has 1 rows, input_ids 2",
        ),
        (
            r#"{"input_ids": [[1, 2]], "prompt_lengths": [3]}"#,
            "prompt_length 3 is past the row's 2 tokens",
        ),
        (r#"{"input_ids": [[1, 2]], "labels": [[1]]}"#, "row 0 has 1 labels for 2 input_ids"),
        (r#"{"input_ids": [[1, 2]], "labels": [[1, -100]]}"#, "no label counts"),
        (
            r#"{"input_ids": [[1, 2]], "labels": [[1, 128]]}"#,
            "token id 128 is not in the vocabulary of 128",
        ),
        (r#"{"input_ids": [[1, -1]]}"#, "token id -1 is not in the vocabulary"),
        (r#"{"input_ids": [[]]}"#, "every row needs a token"),
        (r#"{"input_ids": []}"#, "the batch has no rows"),
        (r#"{"input_ids": [[1]], "attention_mask": [[1]]}"#, "unknown field `attention_mask`"),
        ("{\"input_ids\":\n [[1,]]}", "line 2"),
    ];
    let (input, output) = (dir.path().join("in.json"), dir.path().join("out.safetensors"));
    for (text, says) in cases {
        fs::write(&input, text)?;
        let run = run(args![
            "logits",
            "--model",
            oracle("tiny_llama"),
            "--input",
            input,
            "--output",
            output
        ])?;
        assert_eq!(run.code, Some(1), "{text}");
        assert!(run.stderr.contains(says), "{text}: {}", run.stderr);
        assert!(!output.exists() && run.stdout.is_empty(), "{text} leaves something behind");
    }
    Ok(())
}

/// Oracle: directories written by PEFT 0.14 and the logits of its models.
#[test]
fn adapters_written_by_peft_give_its_logits_padded_on_either_side() -> Result {
    let dir = tempfile::tempdir()?;
    let input = logits_input(dir.path())?;
    for name in ["lora_qv", "lora_all", "prefix"] {
        let adapter = oracle("peft").join(name);
        let expected = values(&oracle(&format!("peft/{name}.safetensors")))?;
        for padding in [&args![][..], &args!["--left-pad"]] {
            let more = [&args!["--adapter", adapter], padding].concat();
            let found = logits(dir.path(), &input, &more)?;
            assert_rows(name, &found["logits"], &expected["logits"]);
            assert_values_close(name, &found["loss"].1, &expected["loss"].1, TOLERANCE);
        }
    }
    Ok(())
}
