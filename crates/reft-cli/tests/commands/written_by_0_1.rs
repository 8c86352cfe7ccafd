//! Files of version 0.1.0 are read, with the same meaning: `tests/written_by_0_1`, whose README lists them.

use reft_test_support::{Values, assert_values_close, values};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;
use tempfile::TempDir;

use crate::Result;
use crate::files::{listing, losses};
use crate::runs::{Run, args, command};

/// Tolerance for logits up to 4.9, of three layers of size 16 in f32. Version 0.1.0 repeats them bit for bit on the machine that wrote
/// them. Other processors' kernels sum in another order: libtorch's and MKL's plain kernels differ by 4.7e-6 from those with AVX2.
const LOGITS: f64 = 2e-5;

/// Relative tolerance for losses, for the same reason: runs and comparisons differ by 3.7e-7, a method's first eight steps by 1.8e-6.
const LOSSES: f64 = 1e-5;

/// The folder, or something in it.
fn written(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/written_by_0_1").join(path)
}

/// Copies of some of the folder's files and directories, by the same names.
fn copy_of(parts: &[&str]) -> Result<TempDir> {
    let copy = tempfile::tempdir()?;
    for part in parts {
        copy_to(&written(part), &copy.path().join(part))?;
    }
    Ok(copy)
}

fn copy_to(from: &Path, to: &Path) -> Result {
    if !from.is_dir() {
        fs::copy(from, to)?;
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy_to(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Runs the binary in a directory on one thread of the CPU; it must succeed.
fn succeed_in(directory: &Path, args: Vec<OsString>) -> Result<Run> {
    let run = Run::from(command(&args).current_dir(directory).output()?);
    if run.code != Some(0) {
        return Err(format!("{args:?}: exit code {:?}\n{}", run.code, run.stderr).into());
    }
    Ok(run)
}

const HERE: [&str; 4] = ["--device", "cpu", "--threads", "1"];

fn here() -> Vec<OsString> {
    HERE.iter().map(OsString::from).collect()
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

/// Names of all adapters, sorted.
fn adapters() -> Result<Vec<String>> {
    let entries = fs::read_dir(written("adapters"))?;
    let name = |entry: std::io::Result<fs::DirEntry>| -> Result<String> {
        Ok(entry?.file_name().to_string_lossy().into_owned())
    };
    let mut names = entries.map(name).collect::<Result<Vec<_>>>()?;
    names.sort();
    assert_eq!(names.len(), 40, "an adapter is missing");
    Ok(names)
}

#[test]
fn adapters_give_the_logits_that_they_gave() -> Result {
    let dir = tempfile::tempdir()?;
    let output = dir.path().join("logits.safetensors");
    let logits = |adapter: Vec<OsString>| {
        let (model, input) = (written("model"), written("batch.json"));
        let all = args!["logits", "--model", model, "--input", input, "--output", output];
        succeed_in(dir.path(), [all, adapter, here()].concat())?;
        values(&output)
    };
    let without = logits(args![])?;
    let check = |name: &str, found: &Values| -> Result {
        let expected = values(&written("logits").join(format!("{name}.safetensors")))?;
        assert!(found.keys().eq(expected.keys()), "{name}: {:?}", found.keys());
        for (tensor, (shape, values)) in &expected {
            let what = format!("{tensor} of {name}");
            assert_eq!(found[tensor].0, *shape, "{what}");
            assert_values_close(&what, &found[tensor].1, values, LOGITS);
        }
        Ok(())
    };
    check("none", &without)?;
    for name in adapters()? {
        let found = logits(args!["--adapter", written("adapters").join(&name)])?;
        check(&name, &found)?;
        let pairs = found["logits"].1.iter().zip(&without["logits"].1);
        let change = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(f64::from(change) > 1000.0 * LOGITS, "{name} changes the logits by {change}");
    }
    Ok(())
}

#[test]
fn adapters_are_inspected_as_what_they_were_trained_as() -> Result {
    let directory = written("");
    let more = ["loreft-tied", "loreft+lora", "prefix+loreft", "prompt+lora"];
    for name in METHODS.into_iter().chain(more) {
        let adapter = Path::new("adapters").join(name);
        let options: toml::Table =
            fs::read_to_string(directory.join(&adapter).join("train.toml"))?.parse()?;
        let run = succeed_in(&directory, args!["inspect", adapter, "--model", "model", "--json"])?;
        let found: Value = serde_json::from_str(&run.stdout)?;
        assert_eq!(found["method"].as_str(), options["method"].as_str(), "{name}");
        assert_eq!(found["base_model"]["name"], "model", "{name}");
        let tied = options.get("share_weights").and_then(toml::Value::as_bool);
        if let Some(config) = found.get("config").filter(|config| !config.is_null()) {
            assert_eq!(config["share_weights"].as_bool(), tied, "{name}");
        }
    }
    Ok(())
}

/// Asserts losses by step, as [`losses`] reads them, from the first expected step on.
fn assert_losses(what: &str, found: &[(u64, String)], expected: &[(u64, String)]) -> Result {
    let first = expected.first().ok_or("no losses")?.0;
    let found: Vec<_> = found.iter().filter(|(step, _)| *step >= first).collect();
    assert!(found.len() >= expected.len(), "{what}: {} steps from {first} on", found.len());
    for ((step, loss), (expected_step, expected)) in found.into_iter().zip(expected) {
        assert_eq!(step, expected_step, "{what}");
        let (loss, expected): (f64, f64) = (loss.parse()?, expected.parse()?);
        let difference = (loss / expected - 1.0).abs();
        assert!(difference <= LOSSES, "{what}, step {step}: {loss} for {expected}");
    }
    Ok(())
}

#[test]
fn stopped_runs_go_on_as_they_would_have() -> Result {
    for name in ["loreft", "lora", "accumulated"] {
        let run = format!("run/{name}");
        let copy = copy_of(&["model", "rows.jsonl", &run])?;
        let before = losses(&copy.path().join(&run))?;
        let said = succeed_in(copy.path(), args!["train", "--resume", "--output", run])?;
        assert!(said.stderr.contains("going on after "), "{name}: {}", said.stderr);
        let after = losses(&copy.path().join(&run))?;
        assert_eq!(after[..before.len()], before, "{name}: steps were taken again");
        assert_eq!(after.len(), 300, "{name}");
        let next = losses(&written("run").join(name).join("next"))?;
        assert_eq!(next.len(), 20, "{name}");
        assert_eq!(next[0].0, before.len() as u64 + 1, "{name}");
        // libtorch draws dropout by MKL on x86-64, and by itself elsewhere: other coordinates
        if name != "accumulated" || cfg!(target_arch = "x86_64") {
            assert_losses(name, &after, &next)?;
        }
    }
    Ok(())
}

/// Methods after which an adapter's directory is named. Other directories have a longer name.
const METHODS: [&str; 16] = [
    "loreft",
    "direft",
    "direft-orth",
    "noreft",
    "consreft",
    "lobireft",
    "lora",
    "rslora",
    "dora",
    "prefix",
    "prompt",
    "ia3",
    "red",
    "series-adapter",
    "parallel-adapter",
    "full",
];

/// A run with the saved options of an adapter in `METHODS` repeats its losses. Several methods at once are not among them, because
/// loreft+lora differs by 3.5e-4 between kernels.
#[test]
fn methods_train_as_they_did() -> Result {
    let copy = copy_of(&["model", "rows.jsonl", "adapters"])?;
    for name in METHODS {
        let options = format!("adapters/{name}/train.toml");
        let output = format!("again/{name}");
        let train = args!["train", "--config", options, "--output", output];
        succeed_in(copy.path(), [train, here()].concat())?;
        let found = losses(&copy.path().join(&output))?;
        assert_losses(name, &found, &losses(&written("adapters").join(name))?)?;
    }
    Ok(())
}

/// `reft train` without `share_weights`: an intervention for each end of the prompt.
#[test]
fn a_training_recipe_means_what_it_meant() -> Result {
    let copy = copy_of(&["model", "rows.jsonl", "recipes"])?;
    let train = args!["train", "--config", "recipes/train.toml", "--model", "model"];
    let files = args!["--data", "rows.jsonl", "--output", "out"];
    succeed_in(copy.path(), [train, files, here()].concat())?;
    let config = read(&copy.path().join("out/reft_config.json"))?;
    assert_eq!(config["share_weights"], false);
    let expected = losses(&written("recipes/done"))?;
    assert_losses("recipes/train.toml", &losses(&copy.path().join("out"))?, &expected)
}

/// Every file below a directory with its bytes and when it was written.
fn contents(directory: &Path) -> Result<Vec<(PathBuf, Vec<u8>, SystemTime)>> {
    let files = listing(directory)?.into_iter().filter(|path| path.is_file());
    let file = |path: PathBuf| -> Result<_> {
        Ok((path.clone(), fs::read(&path)?, fs::metadata(&path)?.modified()?))
    };
    files.map(file).collect()
}

fn compare(directory: &Path) -> Result<Run> {
    let config = args!["compare", "--config", "comparison/compare.toml", "--model", "model"];
    let output = args!["--data", "comparison", "--output", "comparison/done"];
    succeed_in(directory, [config, output, here()].concat())
}

/// A method of a report by its label.
fn method<'a>(report: &'a Value, label: &str) -> Result<&'a Value> {
    let methods = report["methods"].as_array().ok_or("no methods")?;
    let found = methods.iter().find(|method| method["label"] == label);
    Ok(found.ok_or_else(|| format!("{label} is not in the report"))?)
}

#[test]
fn a_finished_comparison_is_finished() -> Result {
    let copy = copy_of(&["model", "comparison"])?;
    let done = copy.path().join("comparison/done");
    let (before, cells) = (read(&done.join("report.json"))?, contents(&done.join("cells"))?);
    let said = compare(copy.path())?;
    assert_eq!(said.stderr.matches("finished before").count(), 10, "{}", said.stderr);
    assert!(contents(&done.join("cells"))? == cells, "cells were written again");
    let after = read(&done.join("report.json"))?;
    assert!(done.join("report.html").is_file());
    assert_eq!(after["complete"], true);
    let (mut before, mut after) = (before, after);
    for report in [&mut before, &mut after] {
        let plan = report["plan"].as_object_mut().ok_or("no plan")?;
        plan.retain(|name, _| name != "machine" && name != "command"); // of the report's writer
    }
    assert_holds("report", &after, &before);
    Ok(())
}

/// Checks that everything written is still there; `found` may have further fields.
fn assert_holds(what: &str, found: &Value, written: &Value) {
    match (found, written) {
        (Value::Object(found), Value::Object(written)) => {
            for (name, written) in written {
                let what = format!("{what}.{name}");
                let found = found.get(name).unwrap_or_else(|| panic!("{what} is gone"));
                assert_holds(&what, found, written);
            }
        }
        (Value::Array(found), Value::Array(written)) => {
            assert_eq!(found.len(), written.len(), "{what}: another length");
            for (i, (found, written)) in found.iter().zip(written).enumerate() {
                assert_holds(&format!("{what}[{i}]"), found, written);
            }
        }
        _ => assert_eq!(found, written, "{what}"),
    }
}

/// `reft compare` without `share_weights`: one intervention per layer for both ends of the prompt.
#[test]
fn a_comparison_recipe_means_what_it_meant() -> Result {
    let copy = copy_of(&["model", "comparison"])?;
    let done = copy.path().join("comparison/done");
    let before = read(&done.join("report.json"))?;
    fs::remove_dir_all(done.join("cells/loreft"))?;
    let said = compare(copy.path())?;
    assert_eq!(said.stderr.matches("finished before").count(), 7, "{}", said.stderr);
    let after = read(&done.join("report.json"))?;
    let (before, after) = (method(&before, "loreft")?, method(&after, "loreft")?);
    // per layer: r (d + d) + r, of rank 2 and hidden size 16
    assert_eq!(before["trainable_parameters"], 3 * (2 * 32 + 2));
    assert_eq!(after["trainable_parameters"], before["trainable_parameters"]);
    let losses = |method: &Value| -> Result<Vec<f64>> {
        Ok(serde_json::from_value(method["losses"].clone())?)
    };
    let (found, expected) = (losses(after)?, losses(before)?);
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found / expected - 1.0).abs() <= LOSSES, "{found} for {expected}");
    }
    Ok(())
}

/// The three searches: the directory and the arguments of each.
fn searches() -> [(&'static str, Vec<OsString>); 3] {
    let words = args!["--task", "search/task.toml", "--model", "model"];
    let heads = args!["--layers", "1", "--positions", "last", "--sites", "attention_head"];
    let gates = args!["--alignment", "boundless", "--no-untrained-model"];
    [
        ("search/words", [words.clone(), args!["--layers", "0;2"]].concat()),
        ("search/heads", [words, heads, gates].concat()),
        ("search/network", args!["--task", "search/network.toml"]),
    ]
}

#[test]
fn finished_searches_are_finished() -> Result {
    let copy = copy_of(&["model", "search"])?;
    for (name, arguments) in searches() {
        let done = copy.path().join(name);
        let (before, cells) = (read(&done.join("das.json"))?, contents(&done.join("cells"))?);
        assert!(!cells.is_empty(), "{name}");
        let output = args!["das", "--output", name];
        let said = succeed_in(copy.path(), [output, arguments, here()].concat())?;
        assert!(!said.stderr.contains(": IIA "), "{name} is searched again: {}", said.stderr);
        assert!(contents(&done.join("cells"))? == cells, "{name}: cells were written again");
        assert!(done.join("das.html").is_file(), "{name}");
        let after = read(&done.join("das.json"))?;
        assert!(before["rows"].as_array().is_some_and(|rows| !rows.is_empty()), "{name}");
        assert_holds(name, &after["rows"], &before["rows"]);
    }
    Ok(())
}

#[test]
fn a_direction_that_was_found_steers_as_it_did() -> Result {
    let cell = "search/words/cells/block_output-2/subject/rank-1";
    let direction = args!["steer", "--model", "model", "--layer", "2", "--das", cell];
    let reply = args!["--strength", "3", "--prompt", "two dogs sees", "--max-new-tokens", "8"];
    let said = succeed_in(&written(""), [direction, reply, here()].concat())?;
    assert_eq!(said.stdout, fs::read_to_string(written("search/steered.txt"))?);
    Ok(())
}
