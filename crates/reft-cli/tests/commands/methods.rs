//! `reft train` and `reft inspect` with every method.

use reft_test_support::{Values, values};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Result;
use crate::files::{listing, losses, many_rows};
use crate::interruption::{start, wait_for_step};
use crate::runs::{args, oracle, overridden, succeed};

/// A method, its options, and the trained parameters of the tiny model: d 64, 4 layers, keys and values 32, MLP 128.
const METHODS: [(&str, &[&str], i64); 11] = [
    // per layer: r (64 + 64) for q_proj, r (64 + 32) for v_proj
    ("lora", &["--rank", "3", "--alpha", "5", "--target-modules", "q_proj,v_proj"], 4 * 3 * 224),
    ("rslora", &["--rank", "2", "--dropout", "0.2", "--layers", "1;3"], 2 * 2 * 1024),
    // and a magnitude for every row
    ("dora", &["--rank", "2", "--target-modules", ".*o_proj"], 4 * (2 * 128 + 64)),
    ("prefix", &["--n-virtual-tokens", "3", "--init-tokens", "5,9"], 3 * 4 * 2 * 32),
    ("prompt", &["--n-virtual-tokens", "4"], 4 * 64),
    ("ia3", &["--target-modules", "k_proj,down_proj"], 4 * (32 + 128)),
    ("red", &["--layers", "0;2", "--components", "mlp_output,block_output"], 2 * 2 * 128),
    ("series-adapter", &["--bottleneck-size", "5", "--act-fn", "gelu"], 4 * (2 * 5 * 64 + 5 + 64)),
    ("full", &["--lr", "1e-3"], 164_416),
    ("loreft+lora", &["--rank", "2", "--dropout", "0.1"], 4 * (4 * 64 + 2) + 4 * 2 * 1024),
    ("direft", &["--positions", "l1", "--layers", "2"], 16 * 64 + 8),
];

fn training(method: &str, options: &[&str], data: &Path, output: &Path) -> Vec<OsString> {
    let run = args![
        "train",
        "--model",
        oracle("tiny_llama"),
        "--data",
        data,
        "--output",
        output,
        "--method",
        method,
        "--batch-size",
        "3",
        "--lr",
        "1e-2",
        "--max-steps",
        "40",
        "--checkpoint-every",
        "7",
        "--validation",
        "2",
        "--eval-every",
        "20",
        "--threads",
        "1"
    ];
    overridden([run, options.iter().map(OsString::from).collect()].concat())
}

/// A file of an adapter: the tensors of a safetensors file, whose metadata may be in any order, or its bytes.
#[derive(Debug, PartialEq)]
enum Content {
    Tensors(Values),
    Bytes(Vec<u8>),
}

/// The files of the adapter in a run's directory, by their place in it.
fn adapter_files(run: &Path) -> Result<BTreeMap<PathBuf, Content>> {
    let mut files = BTreeMap::new();
    for path in listing(run)?.into_iter().filter(|path| path.is_file()) {
        let place = path.strip_prefix(run)?.to_owned();
        let is_runs =
            [".lock", "checkpoint", "train.toml", "metrics.jsonl", "report.html", "README.md"];
        if is_runs.iter().any(|name| place.starts_with(name)) {
            continue;
        }
        let is_tensors = place.extension().is_some_and(|extension| extension == "safetensors");
        let content = match is_tensors {
            true => Content::Tensors(values(&path)?),
            false => Content::Bytes(fs::read(&path)?),
        };
        files.insert(place, content);
    }
    Ok(files)
}

#[test]
fn every_method_trains_and_a_killed_run_goes_on_as_if_nothing_had_been() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 14)?;
    for (method, options, parameters) in METHODS {
        let (whole, killed) = (dir.path().join(method), dir.path().join("killed").join(method));
        let trained =
            succeed([training(method, options, &data, &whole), args!["--json"]].concat())?;
        let trained: Value = serde_json::from_str(&trained.stdout)?;
        assert_eq!(trained["trainable_parameters"], parameters, "{method}");
        let losses_of = losses(&whole)?.into_iter().map(|(_, loss)| loss.parse());
        let of_steps = losses_of.collect::<std::result::Result<Vec<f64>, _>>()?;
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (first, last) = (mean(&of_steps[..4]), mean(&of_steps[36..])); // an epoch each
        assert!(last < 0.95 * first, "{method}: loss {first} -> {last}");

        let mut run = start(training(method, options, &data, &killed))?;
        wait_for_step(&mut run, &killed, 9)?;
        run.kill()?; // SIGKILL
        run.wait()?;
        assert!(adapter_files(&killed)?.is_empty(), "{method}: the run had ended already");
        succeed(args!["train", "--resume", "--output", killed])?;
        assert_eq!(losses(&killed)?, losses(&whole)?, "{method}");
        assert!(adapter_files(&killed)? == adapter_files(&whole)?, "{method}: other numbers");

        let inspected = succeed(args!["inspect", whole, "--json"])?;
        let inspected: Value = serde_json::from_str(&inspected.stdout)?;
        assert_eq!(inspected["type"], "adapter", "{method}");
        assert_eq!(inspected["method"], method);
        assert_eq!(inspected["parameters"], parameters, "{method}");
        assert_eq!(inspected["base_parameters"], 164_416, "{method}");
        let files = adapter_files(&whole)?.into_keys();
        let sizes = files.map(|file| Ok(fs::metadata(whole.join(file))?.len()));
        let bytes: u64 = sizes.collect::<Result<Vec<_>>>()?.iter().sum();
        assert_eq!(inspected["bytes"], bytes, "{method}");
        // overwriting removes this method's files, and nothing else
        fs::write(whole.join("notes.txt"), "mine")?;
        let one_step = training("prompt", &["--max-steps", "1"], &data, &whole);
        let again = [one_step, args!["--overwrite"]].concat();
        succeed(again)?;
        let left: Vec<PathBuf> = adapter_files(&whole)?.into_keys().collect();
        let prompt = ["adapter_config.json", "adapter_model.safetensors", "notes.txt"];
        assert_eq!(left, prompt.map(PathBuf::from), "{method}");
    }
    Ok(())
}

#[test]
fn options_in_force_make_the_same_run_again() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 9)?;
    for (method, options, _) in METHODS {
        let run = |name: &str| dir.path().join(name).join(method);
        let (first, second) = (run("first"), run("second"));
        let short = args!["--max-steps", "2"];
        succeed(overridden([training(method, options, &data, &first), short].concat()))?;
        succeed(args!["train", "--config", first.join("train.toml"), "--output", second])?;
        assert_eq!(losses(&first)?, losses(&second)?, "{method}");
        assert!(adapter_files(&first)? == adapter_files(&second)?, "{method}: other numbers");
    }
    Ok(())
}

/// The loss before the fourth update is the loss of the adapter after three.
#[test]
fn a_start_from_an_adapter_goes_on_where_it_ended() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 5)?;
    for (method, options, _) in METHODS {
        let run = |name: &str| dir.path().join(name).join(method);
        let (longer, shorter, after) = (run("longer"), run("shorter"), run("after"));
        let mut same = args!["--no-shuffle", "--batch-size", "8", "--validation", "0"];
        same.extend(args!["--schedule", "constant"]);
        if options.contains(&"--dropout") {
            same.extend(args!["--dropout", "0"]);
        }
        let train = |output: &Path, own: Vec<&str>, more: Vec<OsString>| {
            succeed(overridden(
                [training(method, &own, &data, output), same.clone(), more].concat(),
            ))
        };
        train(&longer, options.to_vec(), args!["--max-steps", "4"])?;
        train(&shorter, options.to_vec(), args!["--max-steps", "3"])?;
        // --init-tokens is for the start of new virtual tokens only
        let is_start = |pair: &&[&str]| pair[0] == "--init-tokens";
        let own = options.chunks(2).filter(|pair| !is_start(pair)).flatten().copied().collect();
        train(&after, own, args!["--max-steps", "1", "--init-adapter", shorter])?;
        let loss = |run: &Path, step: usize| -> Result<f64> {
            Ok(losses(run)?.get(step).ok_or("no such step")?.1.parse()?)
        };
        let (found, expected) = (loss(&after, 0)?, loss(&longer, 3)?);
        // a loaded rotation is decomposed into reflections again, with f32 rounding; other methods repeat exactly
        let tolerance = if method.contains("loreft") { 1e-5 } else { 0.0 };
        assert!((found - expected).abs() <= tolerance, "{method}: {found} for {expected}");
        assert!((found - loss(&longer, 0)?).abs() > 1e-3, "{method}: training changed nothing");
    }
    Ok(())
}

#[test]
fn an_adapter_to_start_from_decides_what_it_is() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 5)?;
    let adapter = oracle("peft/lora_qv"); // PEFT's own: rank 4, alpha 8
    let output = dir.path().join("run");
    let train = |more: &[&str]| {
        let run = args![
            "train",
            "--model",
            oracle("tiny_llama"),
            "--data",
            data,
            "--output",
            output,
            "--init-adapter",
            adapter,
            "--max-steps",
            "1",
            "--threads",
            "1"
        ];
        crate::runs::run(overridden([run, more.iter().map(OsString::from).collect()].concat()))
    };
    for (flags, says) in [
        (["--rank", "8"], "--rank is 8, but the adapter to start from"),
        (["--alpha", "4"], "has 8"),
        (["--method", "dora"], "has lora"),
        (["--layers", "1"], "--layers is [1], but"),
        (["--positions", "l1"], "--positions is l1, but"),
        (["--init-text", "yes"], "--init-text is the start of a new adapter"),
    ] {
        let run = train(&flags)?;
        assert_eq!(run.code, Some(1), "{flags:?}");
        assert!(run.stderr.contains(says), "{}", run.stderr);
        assert!(!output.exists());
    }
    let accepted = train(&["--rank", "4", "--alpha", "8", "--layers", "all", "--method", "lora"])?;
    assert_eq!(accepted.code, Some(0), "{}", accepted.stderr);
    let read =
        |path: PathBuf| -> Result<Value> { Ok(serde_json::from_str(&fs::read_to_string(path)?)?) };
    let (own, peft) =
        (read(output.join("adapter_config.json"))?, read(adapter.join("adapter_config.json"))?);
    assert_eq!(own["target_modules"], peft["target_modules"]);
    assert_eq!((&own["r"], &own["lora_alpha"]), (&peft["r"], &peft["lora_alpha"]));
    Ok(())
}

#[test]
fn adapters_of_pefts_own_are_inspected() -> Result {
    for (name, method, sites) in [
        ("peft/lora_qv", "lora", "q_proj, v_proj of layers 0-3"),
        ("peft/prefix", "prefix", "virtual tokens"),
    ] {
        let model = oracle("tiny_llama");
        let text = succeed(args!["inspect", oracle(name), "--model", model])?.stdout;
        assert!(text.contains(method) && text.contains(sites), "{text}");
        assert!(text.contains("of 164,416"), "{text}");
        let other = oracle("families/llama_biases");
        let refused = crate::runs::run(args!["inspect", oracle(name), "--model", other])?;
        assert_eq!(refused.code, Some(1), "{name}: {}", refused.stdout);
    }
    Ok(())
}

/// Rows of training and of generation name their coordinates. The flag is for rows that do not.
#[test]
fn parts_of_a_subspace_are_trained_and_used_apart() -> Result {
    let dir = tempfile::tempdir()?;
    let row = |i: usize, subspace: &str| {
        let ids: Vec<usize> = (0..8).map(|t| (11 * i + 7 * t * t + 3) % 128).collect();
        format!("{{\"input_ids\": {ids:?}, \"prompt_length\": 3{subspace}}}\n")
    };
    let [both, first, second] = ["", ", \"subspace\": [0, 1]", ", \"subspace\": [2, 3]"];
    let rows = |name: &str, subspaces: &[&str]| -> Result<PathBuf> {
        let rows = subspaces.iter().enumerate().map(|(i, subspace)| row(i, subspace));
        let file = dir.path().join(name);
        fs::write(&file, rows.collect::<String>())?;
        Ok(file)
    };
    let data = rows("train.jsonl", &[first, second, first, second])?;
    let output = dir.path().join("run");
    let options = ["--rank", "4", "--positions", "f2+l1", "--lr", "0.1", "--schedule", "constant"];
    succeed(overridden(
        [training("loreft", &options, &data, &output), args!["--validation", "1"]].concat(),
    ))?;
    let replies = |input: &Path, more: &[&str]| {
        let run = args![
            "generate",
            "--model",
            oracle("tiny_llama"),
            "--adapter",
            output,
            "--input",
            input,
            "--max-new-tokens",
            "5",
            "--json"
        ];
        crate::runs::run(overridden([run, more.iter().map(OsString::from).collect()].concat()))
    };
    let ids = |input: &Path, more: &[&str]| -> Result<Vec<Value>> {
        let result: Value = serde_json::from_str(&replies(input, more)?.stdout)?;
        let rows = result["rows"].as_array().ok_or("no rows")?;
        Ok(rows.iter().map(|row| row["ids"].clone()).collect())
    };
    let plain = rows("plain.jsonl", &[both; 4])?;
    let of_first = ids(&plain, &["--subspace", "0-1"])?;
    assert_eq!(of_first, ids(&rows("first.jsonl", &[first; 4])?, &[])?);
    assert_ne!(of_first, ids(&plain, &[])?, "both groups reply as the first alone");
    assert_ne!(of_first, ids(&plain, &["--subspace", "2,3"])?, "both groups do the same");
    let mixed = rows("mixed.jsonl", &[first, both, both, both])?;
    let of_mixed = ids(&mixed, &["--subspace", "2-3"])?;
    assert_eq!(of_mixed[0], of_first[0], "a row's own coordinates win");
    let past = replies(&plain, &["--subspace", "4"])?;
    assert_eq!(past.code, Some(1));
    assert!(past.stderr.contains("subspace coordinate 4 is out of range"), "{}", past.stderr);
    let without = crate::runs::run(args![
        "generate",
        "--model",
        oracle("tiny_llama"),
        "--input",
        plain,
        "--subspace",
        "0"
    ])?;
    assert_eq!(without.code, Some(1));
    assert!(without.stderr.contains("--subspace is for ReFT adapters"), "{}", without.stderr);
    Ok(())
}
