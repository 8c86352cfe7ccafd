//! `reft compare` and the tasks of `reft eval`, on a model of four layers with a tokenizer of letters.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Result;
use crate::runs::{args, oracle, refuse, run, succeed};

const CONFIG: &str = r#"task = "task.toml"
seeds = [0]

[data]
train = "train.tsv"
test = ["test.tsv"]
validation_size = 8

[train]
max_steps = 3
batch_size = 4

[[method]]
method = "loreft"
lr = [1e-2]
options = { rank = 2, positions = "f2+l2" }

[[method]]
method = "lora"
lr = [1e-2]
options = { rank = 2 }
"#;

const TASK: &str = r#"type = "choice"
scoring = "log_probability"
columns = ["text", "label"]
template = "plain"
prompt = "{text}:"
answer = "label"
labels = { 0 = "no", 1 = "yes" }
"#;

/// A model, data, a task and a comparison of it.
pub fn bench() -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    let model = dir.path().join("model");
    fs::create_dir(&model)?;
    for file in ["config.json", "model.safetensors"] {
        fs::copy(oracle("tiny_llama").join(file), model.join(file))?;
    }
    let letters = "abcdefghijklmnopqrstuvwxyz :".chars();
    let mut vocab: serde_json::Map<String, Value> =
        letters.zip(3..).map(|(letter, id)| (letter.to_string(), id.into())).collect();
    vocab.insert("</s>".to_owned(), 2.into());
    let end = json!({"id": 2, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [end],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    fs::write(model.join("tokenizer.json"), tokenizer.to_string())?;
    fs::write(model.join("tokenizer_config.json"), r#"{"eos_token": "</s>"}"#)?;
    let rows = |from: u8, n: u8| -> String {
        let letter = |i: u8| char::from(b'a' + i % 26);
        (from..from + n).map(|i| format!("{}{}x\t{}\n", letter(i), letter(i / 26), i % 2)).collect()
    };
    fs::write(dir.path().join("train.tsv"), rows(0, 24))?;
    fs::write(dir.path().join("test.tsv"), rows(30, 10))?;
    fs::write(dir.path().join("task.toml"), TASK)?;
    fs::write(dir.path().join("compare.toml"), CONFIG)?;
    Ok(dir)
}

/// The command line of the comparison.
pub fn compare(dir: &Path, output: &Path) -> Vec<std::ffi::OsString> {
    let (config, model) = (dir.join("compare.toml"), dir.join("model"));
    args![
        "compare",
        "--config",
        config,
        "--model",
        model,
        "--data",
        dir,
        "--output",
        output,
        "--threads",
        "1"
    ]
}

fn read(path: PathBuf) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[test]
fn a_comparison_is_run_once_and_reported_again() -> Result {
    let dir = bench()?;
    let output = dir.path().join("out");
    let first = succeed(compare(dir.path(), &output))?;
    assert!(
        first.stdout.contains("| loreft |") && first.stdout.contains("| lora |"),
        "{}",
        first.stdout
    );
    let report = read(output.join("report.json"))?;
    assert_eq!(report["complete"], true);
    assert_eq!(report["methods"][0]["losses"].as_array().map(Vec::len), Some(3));
    // a run has a process of its own, so its peak is known and is not the sum of all
    if cfg!(target_os = "linux") {
        assert!(report["methods"][1]["peak_memory_bytes"].as_u64().is_some_and(|n| n > 10_000_000));
    }
    let again = succeed(compare(dir.path(), &output))?;
    assert_eq!(again.stderr.matches("finished before").count(), 3, "{}", again.stderr);
    assert_eq!(read(output.join("report.json"))?["methods"], report["methods"]);

    fs::remove_file(output.join("report.html"))?;
    succeed(args!["compare", "--report-only", output])?;
    assert!(output.join("report.html").is_file());
    Ok(())
}

#[test]
fn bad_comparisons_are_refused_before_anything_is_written() -> Result {
    let dir = bench()?;
    let output = dir.path().join("out");
    let cases = [
        (
            "\"lora\"\nlr = [1e-2]",
            "\"lora\"\nlr = [1e-2, 2e-2]",
            "compare.toml, line 20: lora has 2 learning rates, loreft has 1",
        ),
        ("\"lora\"", "\"lorra\"", "compare.toml, line 19: unknown method \"lorra\""),
        ("max_steps = 3", "steps = 3", "compare.toml, line 10: unknown field `steps`"),
        ("\"task.toml\"", "\"sst2\"", "unknown task; use commonsense, arithmetic, lm, memorise"),
        (
            "validation_size = 8",
            "validation_size = 24",
            "train.tsv: 24 rows, expected 1 to train on and 24 to hold out",
        ),
    ];
    for (from, to, expected) in cases {
        fs::write(dir.path().join("compare.toml"), CONFIG.replacen(from, to, 1))?;
        let run = refuse(compare(dir.path(), &output));
        assert_eq!(run.code, Some(1), "{}", run.stderr);
        assert!(run.stderr.contains(expected), "{expected}: {}", run.stderr);
        assert!(!output.exists(), "{to}");
    }
    fs::write(dir.path().join("compare.toml"), CONFIG)?;
    fs::create_dir(&output)?;
    fs::write(output.join("letter.txt"), "mine")?;
    let run = run(compare(dir.path(), &output))?;
    assert!(run.code == Some(1) && run.stderr.contains("no comparison"), "{}", run.stderr);
    Ok(())
}

#[test]
fn a_sweep_is_run_and_its_mistakes_are_named_with_their_line() -> Result {
    let dir = bench()?;
    let output = dir.path().join("out");
    let sweep = "[sweep.x]\nkey = \"options.rank\"\nvalues = [1, 2]\n\n[sweep.y]\nkey = \"options.layers\"\nname = \"layer\"\nvalues = [[0], [3]]\n\n[train]";
    let config = CONFIG.replacen("[train]", sweep, 1).replace("max_steps = 3", "max_steps = 2");
    for (from, to, expected) in [
        ("[1, 2]", "[1, 65]", "compare.toml, line 11: options.rank = 65: loreft: rank 65"),
        ("[[0], [3]]", "[[0], [4]]", "compare.toml, line 16: options.layers = 4: loreft: layer 4"),
        (
            "options.rank",
            "options.ranks",
            "compare.toml, line 11: options.ranks = 1: unknown field",
        ),
        ("options.rank", "rank", "compare.toml, line 10: key is \"rank\", expected one of options"),
        ("name = \"layer\"", "nam = \"layer\"", "compare.toml, line 15: unknown field `nam`"),
    ] {
        assert!(config.contains(from), "{from}");
        fs::write(dir.path().join("compare.toml"), config.replacen(from, to, 1))?;
        let run = refuse(compare(dir.path(), &output));
        assert_eq!(run.code, Some(1), "{}", run.stderr);
        assert!(run.stderr.contains(expected), "{expected}: {}", run.stderr);
        assert!(!output.exists(), "{to}");
    }
    fs::write(dir.path().join("compare.toml"), config)?;
    let first = succeed(compare(dir.path(), &output))?;
    assert!(first.stdout.contains("| layer \\ rank | 1 | 2 |"), "{}", first.stdout);
    let report = read(output.join("report.json"))?;
    assert_eq!(
        (&report["complete"], report["points"].as_array().map(Vec::len)),
        (&true.into(), Some(4))
    );
    fs::remove_file(output.join("report.html"))?;
    succeed(args!["compare", "--report-only", output])?;
    assert!(output.join("report.html").is_file());
    assert_eq!(read(output.join("report.json"))?, report);
    // a comparison refuses the directory of a sweep
    fs::write(dir.path().join("compare.toml"), CONFIG)?;
    let other = run(compare(dir.path(), &output))?;
    assert!(other.code == Some(1) && other.stderr.contains("plan.json"), "{}", other.stderr);
    Ok(())
}

#[test]
fn a_task_of_a_file_is_measured() -> Result {
    let dir = bench()?;
    let (model, task, data) =
        (dir.path().join("model"), dir.path().join("task.toml"), dir.path().join("test.tsv"));
    let run = succeed(args![
        "eval",
        "--model",
        model,
        "--task",
        task,
        "--data",
        data,
        "--json",
        "--threads",
        "1"
    ])?;
    let result: Value = serde_json::from_str(&run.stdout)?;
    let answers = result["answers"].as_array().ok_or("no answers")?;
    let right =
        answers.iter().enumerate().filter(|(i, answer)| **answer == ["no", "yes"][i % 2]).count();
    assert_eq!((answers.len(), result["accuracy"].as_f64()), (10, Some(right as f64 / 10.0)));
    Ok(())
}

/// Each tested run is a file with the fields that PEFT's own tables need.
#[test]
fn runs_are_written_as_peft_writes_its_own() -> Result {
    let dir = bench()?;
    let (config, output) = (dir.path().join("compare.toml"), dir.path().join("out"));
    let data = dir.path().to_path_buf();
    let command = args!["compare", "--config", config, "--model", dir.path().join("model")];
    let more = args!["--data", data, "--output", output, "--report-format", "peft"];
    succeed([command, more].concat())?;
    for (file, peft_type, rank) in [
        ("loreft--loreft-lr-0.01-seed-0.json", "LOREFT", "rank"),
        ("lora--lora-lr-0.01-seed-0.json", "LORA", "r"),
    ] {
        let run: Value =
            serde_json::from_str(&fs::read_to_string(output.join("peft").join(file))?)?;
        let (info, train) = (&run["run_info"], &run["train_info"]);
        assert_eq!(info["peft_config"]["peft_type"], peft_type, "{run}");
        assert_eq!(info["peft_config"][rank], 2, "{run}");
        assert_eq!(info["train_config"]["model_id"], "model", "{run}");
        assert_eq!(train["status"], "success");
        let last =
            train["metrics"].as_array().and_then(|metrics| metrics.last()).ok_or("metrics")?;
        assert!(last["test accuracy"].is_f64() && last["train loss"].is_f64(), "{last}");
        assert_eq!(last["train samples"], 3 * 4, "{last}");
        for whole in
            ["accelerator_memory_max", "file_size", "num_trainable_params", "num_total_params"]
        {
            assert!(
                train[whole].as_f64().is_some_and(|n| n > 0.0 && n.fract() == 0.0),
                "{whole}: {run}"
            );
        }
        let created = info["created_at"].as_str().ok_or("created_at")?;
        assert!(created.len() == 25 && created.ends_with("+00:00"), "{created}");
        assert!(run["meta_info"]["package_info"]["peft-version"].is_null());
    }
    fs::remove_dir_all(output.join("peft"))?;
    succeed(args!["compare", "--report-only", output, "--report-format", "peft"])?;
    assert_eq!(fs::read_dir(output.join("peft"))?.count(), 2);
    Ok(())
}
