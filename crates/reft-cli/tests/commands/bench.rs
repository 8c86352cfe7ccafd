//! `reft bench`: every method has every figure, and bad input is refused before any timing.

use std::ffi::OsString;

use serde_json::Value;

use crate::Result;
use crate::runs::{args, oracle, overridden, refuse, run, succeed};

/// A small batch for the tiny model, and further flags.
fn bench(more: &[&str]) -> Vec<OsString> {
    let model = oracle("tiny_llama");
    let flags = ["--batch-size", "3", "--prompt-length", "9", "--response-length", "4"];
    let options = args!["bench", "--model", model, "--threads", "1"];
    overridden([options, flags.iter().chain(more).map(OsString::from).collect()].concat())
}

fn timed(more: &[&str]) -> Result<Value> {
    let run = succeed(bench(&[more, &["--json"]].concat()))?;
    Ok(serde_json::from_str(&run.stdout)?)
}

fn number(value: &Value, field: &str) -> Result<f64> {
    value[field].as_f64().ok_or_else(|| format!("{field} is no number in {value}").into())
}

#[test]
fn every_method_has_its_row_with_every_figure() -> Result {
    let methods = "floor,loreft,direft,direft-orth,noreft,consreft,lobireft,lora,rslora,dora,prefix,prompt,ia3,red,series-adapter,parallel-adapter,full,loreft+lora";
    let flags = ["--methods", methods, "--rank", "2", "--layers", "1;3", "--steps", "1"];
    let flags =
        [&flags[..], &["--positions", "f2+l2", "--share-weights", "--n-virtual-tokens", "5"]];
    let report = timed(&flags.concat())?;
    let rows = report["rows"].as_array().ok_or("no rows")?;
    let names: Vec<&str> = rows.iter().filter_map(|row| row["method"].as_str()).collect();
    assert_eq!(names.join(","), methods);
    for row in rows {
        let (least, median) =
            (number(row, "step_seconds_min")?, number(row, "step_seconds_median")?);
        assert!(0.0 < least && least <= median, "{row}");
        let tokens = 3.0 * 13.0; // of a batch
        let speed = number(row, "tokens_per_second")?;
        assert!((speed * median - tokens).abs() < 1e-6 * tokens, "{row}"); // f64 as text
        if cfg!(target_os = "linux") {
            assert!(number(row, "peak_memory_mb")? > 10.0, "{row}"); // libtorch alone takes more
        }
        assert_eq!(row["step_seconds"].as_array().map(Vec::len), Some(1), "{row}");
        assert!(row["generation"].is_null(), "{row}");
    }
    let trainable = |i: usize| rows[i]["trainable_parameters"].as_i64();
    assert_eq!(trainable(0), Some(0), "the floor trains nothing");
    assert_eq!(trainable(1), Some(2 * (2 * 2 * 64 + 2)), "2rd + r for each of two layers");
    assert_eq!(trainable(10), Some(5 * 4 * 2 * 2 * 16), "n layers · 2 · n_kv · d_h");
    let machine = &report["machine"];
    assert_eq!((machine["threads"].as_i64(), machine["device"].as_str()), (Some(1), Some("cpu")));
    Ok(())
}

#[test]
fn steps_are_shared_out_and_a_first_epoch_is_told_apart_where_rows_are_kept() -> Result {
    let flags =
        ["--methods", "floor,loreft,lora", "--positions", "l1", "--steps", "3", "--rounds", "2"];
    let report = timed(&flags)?;
    let rows = report["rows"].as_array().ok_or("no rows")?;
    for row in rows {
        let steps = row["step_seconds"].as_array().map(Vec::len);
        assert_eq!(steps, Some(4), "two turns of two steps: {row}");
    }
    assert!(rows[0]["first_epoch"].is_null() && rows[2]["first_epoch"].is_null(), "{report}");
    let first = &rows[1]["first_epoch"];
    assert_eq!(first["step_seconds"].as_array().map(Vec::len), Some(4), "{first}");
    assert!(number(first, "step_seconds_min")? <= number(first, "step_seconds_median")?);
    let plain = timed(&[&flags[..], &["--no-reuse"]].concat())?;
    assert!(plain["rows"][1]["first_epoch"].is_null(), "{plain}");
    Ok(())
}

#[test]
fn random_weights_and_generation_need_no_checkpoint() -> Result {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("shape.json"); // without weights beside it
    std::fs::copy(oracle("tiny_llama/config.json"), &config)?;
    let options = args!["bench", "--model-config", config, "--random-weights", "--json"];
    let flags = "--methods floor,loreft,prefix --batch-size 2 --prompt-length 30 --response-length 3 --steps 1 --kind bf16 --generate 6 --threads 1";
    let run = succeed([options, flags.split(' ').map(OsString::from).collect()].concat())?;
    let report: Value = serde_json::from_str(&run.stdout)?;
    assert_eq!(
        (report["kind"].as_str(), report["random_weights"].as_bool()),
        (Some("bf16"), Some(true))
    );
    for row in report["rows"].as_array().ok_or("no rows")? {
        let generation = &row["generation"];
        assert_eq!(generation["new_tokens"].as_i64(), Some(6), "{row}");
        assert!(number(generation, "prefill_seconds_median")? > 0.0, "{row}");
        assert!(number(generation, "decode_seconds_per_token_median")? > 0.0, "{row}");
    }
    Ok(())
}

#[test]
fn positions_longer_than_the_prompt_are_cut_and_people_get_a_table() -> Result {
    let flags = [
        "--prompt-length",
        "3",
        "--positions",
        "f7+l7",
        "--steps",
        "1",
        "--methods",
        "floor,loreft",
    ];
    let run = succeed(bench(&flags))?;
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{}", run.stdout);
    assert!(lines[0].starts_with("method") && lines[0].contains("× floor"), "{}", lines[0]);
    assert!(lines[1].starts_with("floor ") && lines[2].starts_with("loreft "), "{}", run.stdout);
    assert!(run.stderr.contains("round 1 of 1: loreft"), "{}", run.stderr);
    Ok(())
}

#[test]
fn what_cannot_be_timed_is_refused_in_one_message() -> Result {
    let cases: [(&[&str], i32, &[&str]); 17] = [
        (&["--methods", "lorra"], 2, &["\"lorra\"", "floor", "loreft, direft"]),
        (&["--methods", "floor+lora"], 2, &["\"floor\"", "joined with +"]),
        (&["--methods", ""], 2, &["--methods"]),
        (&["--methods", "lora,lora"], 1, &["names lora twice"]),
        (&["--rank", "65"], 1, &["rank 65", "1..=64"]),
        (&["--rank", "0"], 1, &["rank 0"]),
        (&["--layers", "4"], 1, &["layer 4 is out of range", "4 layers"]),
        (&["--positions", "abc"], 2, &["--positions", "\"abc\""]),
        (&["--target-modules", "w_proj", "--methods", "lora"], 1, &["w_proj"]),
        (&["--n-virtual-tokens", "0", "--methods", "prefix"], 1, &["--n-virtual-tokens is 0"]),
        (&["--batch-size", "0"], 1, &["--batch-size is 0", "at least 1"]),
        (&["--prompt-length", "0"], 1, &["--prompt-length is 0"]),
        (&["--response-length", "0"], 1, &["--response-length is 0"]),
        (&["--prompt-length", "253"], 1, &["257", "at most 256"]),
        (&["--steps", "0"], 1, &["--steps is 0"]),
        (&["--generate", "1"], 1, &["--generate is 1", "at least 2"]),
        (&["--random-weights"], 2, &["--random-weights"]),
    ];
    for (flags, code, says) in cases {
        let run = refuse(bench(flags));
        assert_eq!(run.code, Some(code), "{flags:?}: {}", run.stderr);
        for words in says {
            assert!(run.stderr.contains(words), "{flags:?}: {words:?} is not in {}", run.stderr);
        }
        let errors = run.stderr.lines().filter(|line| line.starts_with("error: ")).count();
        assert_eq!((errors, run.stdout.as_str()), (1, ""), "{flags:?}: {}", run.stderr);
        assert!(!run.stderr.contains("round 1"), "{flags:?}: {}", run.stderr);
    }
    Ok(())
}

#[test]
fn a_turn_that_fails_ends_the_command_with_its_reason() -> Result {
    let dir = tempfile::tempdir()?;
    std::fs::copy(oracle("tiny_llama/config.json"), dir.path().join("config.json"))?;
    let run = run(args!["bench", "--model", dir.path(), "--steps", "1", "--threads", "1"])?;
    assert_eq!(run.code, Some(1));
    let errors = run.stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{}", run.stderr);
    assert!(run.stderr.contains("floor cannot be timed"), "{}", run.stderr);
    assert!(run.stderr.contains("model.safetensors"), "{}", run.stderr);
    Ok(())
}
