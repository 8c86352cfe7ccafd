//! `reft generate` and `reft inspect` on the tiny model, which has no tokenizer, and help texts.

use std::fs;
use std::process::Stdio;

use serde_json::Value;

use crate::Result;
use crate::logits::import;
use crate::runs::{args, command, oracle, refuse, run, succeed};

#[test]
fn token_rows_are_continued_without_a_tokenizer_in_any_batch() -> Result {
    let dir = tempfile::tempdir()?;
    let input = dir.path().join("prompts.jsonl");
    let rows = [
        r#"{"id": "long", "input_ids": [5, 17, 99, 3, 64, 2, 8], "prompt_length": 7}"#,
        r#"{"id": "short", "input_ids": [40, 41, 42, 1, 1], "prompt_length": 3}"#,
    ];
    fs::write(&input, rows.join("\n"))?;
    let adapter = import(dir.path(), "loreft")?;
    let generate = |more: &[&str]| -> Result<Value> {
        let mut all = args![
            "generate",
            "--model",
            oracle("tiny_llama"),
            "--adapter",
            adapter,
            "--input",
            input,
            "--max-new-tokens",
            "6",
            "--threads",
            "1",
            "--json"
        ];
        all.extend(more.iter().map(std::ffi::OsString::from));
        Ok(serde_json::from_str(&succeed(all)?.stdout)?)
    };
    let together = generate(&[])?;
    assert_eq!(together["rows"], generate(&["--batch-size", "1"])?["rows"]);
    assert_eq!(together["tokens"], 12);
    assert_eq!(together["rows"][0]["id"], "long");
    assert_eq!(together["rows"][1]["prompt_tokens"], 3, "of a row, the prompt is used");
    assert_eq!(together["rows"][1]["finish"], "length");
    assert_eq!(together["rows"][1]["ids"].as_array().map(Vec::len), Some(6));
    assert_eq!(together["rows"][0]["text"], Value::Null);
    let drawn = |seed| generate(&["--temperature", "2", "--seed", seed]);
    assert_eq!(drawn("1")?["rows"], drawn("1")?["rows"]);
    assert_ne!(drawn("1")?["rows"], drawn("2")?["rows"]);
    Ok(())
}

#[test]
fn generation_refuses_what_means_nothing() -> Result {
    let model = oracle("tiny_llama");
    let cases = [
        (args!["--prompt", "hi"], 1, "has no tokenizer for text"),
        (args!["--prompt", "hi", "--temperature", "NaN"], 1, "temperature is NaN"),
        (args!["--prompt", "hi", "--top-p", "0"], 1, "top_p is 0"),
        (args!["--prompt", "hi", "--max-new-tokens", "0"], 1, "max_new_tokens is 0"),
        (args![], 2, "--prompt"),
        (args!["--prompt", "hi", "--input", "x"], 2, "cannot be used with"),
        (args!["--input", "absent.jsonl"], 1, "cannot read absent.jsonl"),
    ];
    for (more, code, says) in cases {
        let run = refuse([args!["generate", "--model", model], more].concat());
        assert_eq!(run.code, Some(code), "{}", run.stderr);
        assert!(run.stderr.contains(says), "{}", run.stderr);
        assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    }
    Ok(())
}

#[test]
fn a_model_and_an_imported_adapter_are_described() -> Result {
    let dir = tempfile::tempdir()?;
    let model = succeed(args!["inspect", oracle("tiny_llama")])?.stdout;
    for says in ["llama", "164,416", "39 F32 tensors", "4 heads of 16, 2 for keys and values"] {
        assert!(model.contains(says), "{says} is not in\n{model}");
    }
    let adapter = import(dir.path(), "direft")?;
    let adapter = succeed(args!["inspect", adapter])?.stdout;
    for says in ["direft-orth", "1;3 (block_output)", "f2+l2, tied, rule pyreft", "1,032", "0.63 %"]
    {
        assert!(adapter.contains(says), "{says} is not in\n{adapter}");
    }
    let saved = run(args!["inspect", oracle("reft_saved/loreft")])?;
    assert_eq!(saved.code, Some(1));
    assert!(saved.stderr.contains("reft import --from pyreft"), "{}", saved.stderr);
    let other = run(args!["inspect", oracle("reft")])?;
    for says in ["holds no adapter", "reft_config.json", "adapter_config.json"] {
        assert!(other.stderr.contains(says), "{}", other.stderr);
    }
    Ok(())
}

#[test]
fn help_is_complete() -> Result {
    let help = succeed(["--help"])?.stdout;
    for name in
        ["train", "generate", "chat", "eval", "logits", "inspect", "import", "export", "steer"]
    {
        assert!(help.contains(&format!("\n  {name} ")), "{name} is not in\n{help}");
        let command = succeed([name, "--help"])?.stdout;
        assert!(command.contains("\nExample"), "{name} --help has no example");
        let short = succeed([name, "-h"])?.stdout;
        let words = |text: &str| text.split_whitespace().count(); // the short one is padded to columns
        assert!(words(&short) < words(&command), "{name} --help adds nothing");
        let flags = short.lines().filter(|line| line.trim_start().starts_with('-'));
        for line in flags {
            let words = line.trim().split_once("  ").map(|(_, words)| words.trim());
            assert!(words.is_none_or(|words| !words.is_empty()), "{name}: {line} is not explained");
        }
    }
    Ok(())
}

#[test]
fn a_reader_that_stops_reading_is_no_failure() -> Result {
    let inspect = args!["inspect", oracle("tiny_llama")];
    let mut run = command(inspect).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    drop(run.stdout.take());
    let ended = run.wait_with_output()?;
    assert_eq!(ended.status.code(), Some(0));
    assert!(ended.stderr.is_empty(), "{}", String::from_utf8_lossy(&ended.stderr));
    Ok(())
}

#[cfg(target_os = "linux")]
#[test]
fn a_result_that_cannot_be_written_is_a_failure() -> Result {
    let full = fs::OpenOptions::new().write(true).open("/dev/full")?;
    let ended = command(args!["inspect", oracle("tiny_llama")]).stdout(full).output()?;
    assert_eq!(ended.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert!(stderr.contains("error: cannot write to stdout"), "{stderr}");
    Ok(())
}
