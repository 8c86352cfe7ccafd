//! Rows, virtual tokens, a prefix and new tokens that together exceed the model's context are refused before work begins.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::Result;
use crate::files::many_rows;
use crate::runs::{args, oracle, run, succeed};

/// Two rows, of 10 and of `length` tokens. The tiny model's context has 256.
fn rows(dir: &Path, length: usize) -> Result<PathBuf> {
    let row = |(id, length): (&str, usize)| {
        let ids: Vec<usize> = (0..length).map(|t| (7 * t + length) % 128).collect();
        json!({ "id": id, "input_ids": ids, "prompt_length": 8 }).to_string()
    };
    let path = dir.join(format!("rows-{length}.jsonl"));
    fs::write(&path, [("short", 10), ("long", length)].map(row).join("\n"))?;
    Ok(path)
}

fn train(data: &Path, output: &Path, more: &[&str]) -> Vec<OsString> {
    let all = args![
        "train",
        "--model",
        oracle("tiny_llama"),
        "--data",
        data,
        "--output",
        output,
        "--max-steps",
        "1",
        "--threads",
        "1"
    ];
    [all, more.iter().map(OsString::from).collect()].concat()
}

/// The methods that put tokens before every row, and the flags for four such tokens.
const METHODS: [&str; 2] = ["prompt", "prefix"];
const FOUR: [&str; 3] = ["--n-virtual-tokens", "4", "--method"];

#[test]
fn training_past_the_context_is_refused_with_its_rows() -> Result {
    let dir = tempfile::tempdir()?;
    let output = dir.path().join("run");
    for method in METHODS {
        let more = |max_length| [&FOUR[..], &[method, "--max-length", max_length]].concat();
        let refused = run(train(&rows(dir.path(), 253)?, &output, &more("512")))?;
        assert_eq!(refused.code, Some(1), "{method}: {}", refused.stderr);
        for says in
            ["long has 253 tokens", "beside 4 ", "context is 256", "shorten to 252", "max_length"]
        {
            assert!(refused.stderr.contains(says), "{says} is not in {}", refused.stderr);
        }
        assert!(!refused.stderr.contains("short has"), "{}", refused.stderr);
        assert!(!output.exists(), "{method}: nothing was begun");
        succeed(train(&rows(dir.path(), 253)?, &output, &more("252")))?;
        fs::remove_dir_all(&output)?;
    }
    let loreft = ["--rank", "2", "--max-length", "512"];
    let refused = run(train(&rows(dir.path(), 257)?, &output, &loreft))?;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("long has 257 tokens; the model's context is 256"),
        "{}",
        refused.stderr
    );
    succeed(train(&rows(dir.path(), 256)?, &output, &loreft))?;
    Ok(())
}

#[test]
fn evaluation_and_generation_past_the_context_are_refused_with_their_rows() -> Result {
    let dir = tempfile::tempdir()?;
    let few = many_rows(dir.path(), 4)?;
    for method in METHODS {
        let adapter = dir.path().join(method);
        succeed(train(&few, &adapter, &[&FOUR[..], &[method]].concat()))?;
        let on_model = |command: &str, more: &[OsString]| {
            let model =
                args!["--model", oracle("tiny_llama"), "--adapter", adapter, "--threads", "1"];
            run([args![command], model, more.to_vec()].concat())
        };
        let eval = |length: usize, more: &[&str]| -> Result<_> {
            let data = args!["--task", "lm", "--data", rows(dir.path(), length)?];
            on_model("eval", &[data, more.iter().map(OsString::from).collect()].concat())
        };
        let refused = eval(253, &[])?;
        assert_eq!(refused.code, Some(1), "{method}: {}", refused.stderr);
        for says in ["long has 253 tokens", "beside 4 ", "context is 256", "shorten to 252"] {
            assert!(refused.stderr.contains(says), "{says} is not in {}", refused.stderr);
        }
        assert_eq!(eval(252, &[])?.code, Some(0), "{method}");
        assert_eq!(eval(300, &["--max-length", "252"])?.code, Some(0), "{method}");
        assert_eq!(eval(300, &["--drop-too-long"])?.code, Some(0), "{method}");

        let prompts = dir.path().join("prompts.jsonl");
        let prompt = |id: &str, n: usize| json!({ "id": id, "input_ids": vec![5; n] }).to_string();
        fs::write(&prompts, [prompt("short", 3), prompt("long", 247)].join("\n"))?;
        let generate = |new: &str| {
            on_model("generate", &args!["--input", prompts, "--max-new-tokens", new, "--json"])
        };
        let refused = generate("6")?;
        assert_eq!(refused.code, Some(1), "{method}: {}", refused.stderr);
        for says in [
            "long has 247 tokens",
            "beside 4 ",
            "6 new ones",
            "context is 256",
            "shorten to 246",
            "max_new_tokens",
        ] {
            assert!(refused.stderr.contains(says), "{says} is not in {}", refused.stderr);
        }
        assert!(refused.stdout.is_empty(), "{}", refused.stdout);
        assert_eq!(generate("5")?.code, Some(0), "{method}");
    }
    Ok(())
}
