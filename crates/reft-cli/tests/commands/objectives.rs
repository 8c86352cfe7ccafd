//! Objectives of `reft train` beside the next token: preferences, and staying close to the frozen model.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Result;
use crate::conversations::{PLAIN, chat_model};
use crate::files::{losses, many_rows};
use crate::runs::{Run, args, oracle, run, succeed};

fn train(model: &Path, data: &Path, output: &Path, more: &[&str]) -> Result<Run> {
    let mut args = args!["train", "--model", model, "--data", data, "--output", output];
    args.extend(args!["--batch-size", "2", "--threads", "1", "--lr", "1e-2", "--rank", "2"]);
    args.extend(more.iter().map(Into::into));
    run(args)
}

/// The terms of each step's loss.
fn terms(run: &Path) -> Result<Vec<Value>> {
    let metrics = fs::read_to_string(run.join("metrics.jsonl"))?;
    let rows = metrics.lines().map(serde_json::from_str::<Value>);
    let rows = rows.collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(rows.into_iter().map(|row| row["terms"].clone()).collect())
}

/// The same preferences as JSON lines and as CSV.
fn preferences(dir: &Path) -> Result<[PathBuf; 2]> {
    let rows = [("a b", "c d e", "f"), ("say d", "e", "g h"), ("g", "h i", "j k l")];
    let lines = rows.map(|(question, chosen, rejected)| {
        let said = |reply: &str| json!([{"role": "user", "content": question}, {"role": "assistant", "content": reply}]);
        json!({"prompt": question, "chosen": said(chosen), "rejected": said(rejected), "score_chosen": 3}).to_string()
    });
    let table = rows.map(|(question, chosen, rejected)| format!("{question},{rejected},{chosen}"));
    let (jsonl, csv) = (dir.join("pairs.jsonl"), dir.join("pairs.csv"));
    fs::write(&jsonl, lines.join("\n"))?;
    fs::write(&csv, format!("question,rejected,better\n{}\n", table.join("\n")))?;
    Ok([jsonl, csv])
}

#[test]
fn preferences_are_learned_by_every_objective_from_every_shape() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let [jsonl, csv] = preferences(dir.path())?;
    for objective in ["dpo", "ipo", "orpo", "simpo"] {
        let output = |name: &str| dir.path().join(format!("{objective}-{name}"));
        let asked = ["--objective", objective, "--max-steps", "16"];
        let trained = train(&model, &jsonl, &output("jsonl"), &asked)?;
        assert_eq!(trained.code, Some(0), "{}", trained.stderr);
        let columns = ["--columns", "chosen=better"];
        let same = train(&model, &csv, &output("csv"), &[&asked[..], &columns].concat())?;
        assert_eq!(same.code, Some(0), "{}", same.stderr);
        assert_eq!(losses(&output("jsonl"))?, losses(&output("csv"))?, "{objective}");
        let terms = terms(&output("jsonl"))?;
        let of = |i: usize, name: &str| terms[i][name].as_f64().ok_or("no such term");
        assert!(of(15, "margin")? > of(0, "margin")? + 0.01, "{objective}: {terms:?}");
        assert_eq!(of(15, "accuracy")?, 1.0, "{objective}");
        assert_eq!(terms[0].get("kl_estimate").is_some(), ["dpo", "ipo"].contains(&objective));
        let options = fs::read_to_string(output("jsonl").join("train.toml"))?;
        assert!(options.contains(&format!("objective = \"{objective}\"")), "{options}");
        let page = fs::read_to_string(output("jsonl").join("report.html"))?;
        assert!(page.contains(">margin<"), "the page has no margin");
    }
    Ok(())
}

/// SimPO's margin at β 1 is the difference of the log-probabilities per token. For replies of one token it is the margin of the task.
#[test]
fn pairs_are_measured_as_they_are_trained() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let [jsonl, _] = preferences(dir.path())?;
    let (output, pairs) = (dir.path().join("run"), jsonl.to_string_lossy());
    let asked = ["--objective", "simpo", "--beta", "1", "--response-tokens", "1"];
    let more =
        ["--validation-data", &pairs, "--max-steps", "6", "--kl-weight", "1e-9", "--kl-top-k", "0"];
    let trained = train(&model, &jsonl, &output, &[&asked[..], &more].concat())?;
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    let rows = fs::read_to_string(output.join("metrics.jsonl"))?;
    let rows = rows.lines().map(serde_json::from_str::<Value>);
    let rows = rows.collect::<std::result::Result<Vec<_>, _>>()?;
    let measured = |row: &Value| Some(row.get("measured")?.clone());
    let start = rows.iter().find_map(measured).ok_or("no validation")?;
    let end = rows.iter().rfind(|row| row["is_best"] == true).and_then(measured);
    let end = end.ok_or("no adapter was kept")?;
    let task = dir.path().join("pairs.toml");
    fs::write(&task, "type = \"preference\"\nlength = 1\n")?;
    let eval = |task: &str| -> Result<Value> {
        let args =
            args!["eval", "--task", task, "--model", model, "--adapter", output, "--data", jsonl];
        let said = succeed([args, args!["--compare-base", "--threads", "1", "--json"]].concat())?;
        Ok(serde_json::from_str(&said.stdout)?)
    };
    let said = eval(&task.to_string_lossy())?;
    let close = |what: &str, found: &Value, expected: &Value| {
        let (found, expected) = (found.as_f64(), expected.as_f64());
        let difference = found.zip(expected).map(|(a, b)| (a - b).abs());
        assert!(difference.is_some_and(|d| d < 1e-5), "{what}: {found:?} {expected:?}"); // f32
    };
    close("margin", &said["margin"], &end["margin"]);
    close("margin of the base model", &said["base"]["margin"], &start["margin"]);
    close("accuracy", &said["accuracy"], &end["accuracy"]);
    close("base model", &said["base"]["accuracy"], &start["accuracy"]);
    close("kl", &said["kl"], &end["kl"]);
    assert!(end["kl"].as_f64() > Some(1e-3) && said["questions"] == 3, "no power: {end}");
    let whole = eval("preference")?; // with the end tokens
    assert!(
        whole["margin"] != said["margin"]
            && whole["answers"].as_array().is_some_and(|a| a.len() == 3)
    );
    Ok(())
}

/// `--compare-base` does not change the loss, and measures the divergence that a run with `--kl-weight` reports.
#[test]
fn the_divergence_from_the_base_model_is_measured_beside_the_loss() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let data = dir.path().join("questions.csv");
    fs::write(&data, "question,answer\na b,c d\nsay d,e\n")?;
    let (output, file) = (dir.path().join("run"), data.to_string_lossy());
    let more =
        ["--validation-data", &file, "--max-steps", "6", "--kl-weight", "1e-9", "--kl-top-k", "0"];
    let trained = train(&model, &data, &output, &more)?;
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    let rows = fs::read_to_string(output.join("metrics.jsonl"))?;
    let rows = rows.lines().map(serde_json::from_str::<Value>);
    let rows = rows.collect::<std::result::Result<Vec<_>, _>>()?;
    let kept = rows.iter().rfind(|row| row["is_best"] == true).ok_or("none")?;
    let eval = |more: &[&str]| -> Result<Value> {
        let args =
            args!["eval", "--task", "lm", "--model", model, "--adapter", output, "--data", data];
        let said = succeed(
            args.into_iter()
                .chain(args!["--threads", "1", "--json"])
                .chain(more.iter().map(Into::into)),
        )?;
        Ok(serde_json::from_str(&said.stdout)?)
    };
    let (alone, beside) = (eval(&[])?, eval(&["--compare-base"])?);
    assert_eq!((&alone["loss"], &alone["perplexity"]), (&beside["loss"], &beside["perplexity"]));
    assert!(alone.get("kl").is_none());
    let kl = |value: &Value| value["kl"].as_f64().unwrap_or(f64::NAN);
    assert!(
        (kl(&beside) - kl(&kept["measured"])).abs() < 1e-5 && kl(&beside) > 1e-3,
        "{beside} {kept}"
    ); // f32
    Ok(())
}

#[test]
fn the_recipe_of_preferences_is_a_run() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let [pairs, _] = preferences(dir.path())?;
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/preference.toml");
    let args = args!["train", "--config", recipe, "--model", model, "--data", pairs];
    let more = args!["--output", dir.path().join("run"), "--max-steps", "1", "--threads", "1"];
    succeed([args, more].concat())?;
    Ok(())
}

/// The reference is the adapter to start from, unless the base model is asked for. At first the run does not differ from that adapter.
#[test]
fn a_run_that_starts_from_an_adapter_compares_with_it() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let [pairs, _] = preferences(dir.path())?;
    let first = dir.path().join("first");
    let ended = train(&model, &pairs, &first, &["--objective", "simpo", "--max-steps", "8"])?;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let start = first.to_string_lossy();
    let dpo = |name: &str, more: &[&str]| -> Result<f64> {
        let output = dir.path().join(name);
        let mut args = args!["train", "--model", model, "--data", pairs, "--output", output];
        args.extend(args!["--init-adapter", *start, "--objective", "dpo", "--max-steps", "2"]);
        args.extend(more.iter().map(Into::into));
        succeed(args)?;
        Ok(terms(&output)?[0]["kl_estimate"].as_f64().ok_or("no estimate")?.abs())
    };
    assert!(dpo("start", &[])? < 1e-5);
    assert!(dpo("base", &["--reference", "base"])? > 1e-3);
    let resumed = |beta: &str| {
        let output = dir.path().join("start");
        run(args!["train", "--resume", "--output", output, "--beta", beta, "--max-steps", "3"])
    };
    let refused = resumed("0.3")?;
    assert!(refused.code != Some(0) && refused.stderr.contains("beta"), "{}", refused.stderr);
    let going_on =
        run(args!["train", "--resume", "--output", dir.path().join("start"), "--max-steps", "3"])?;
    assert_eq!(going_on.code, Some(0), "{}", going_on.stderr);
    Ok(())
}

#[test]
fn what_does_not_fit_together_is_refused_with_what_to_do() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let [pairs, _] = preferences(dir.path())?;
    let refused = |more: &[&str], words: &str| -> Result {
        let ended = train(&model, &pairs, &dir.path().join("never"), more)?;
        assert!(
            ended.code != Some(0) && ended.stderr.contains(words),
            "{more:?}: {}",
            ended.stderr
        );
        Ok(())
    };
    refused(&[], "--objective dpo, ipo, orpo, simpo or reward learns")?;
    refused(&["--objective", "ppo"], "next-token, dpo, ipo, orpo, simpo")?;
    refused(&["--objective", "dpo", "--reference", "start"], "--init-adapter")?;
    refused(&["--objective", "orpo", "--reference", "base"], "--reference")?;
    refused(&["--objective", "dpo", "--label-smoothing", "0.5"], "--label-smoothing")?;
    refused(&["--objective", "dpo", "--replay", "x.csv"], "--kl-weight")?;
    refused(&["--objective", "dpo", "--kl-top-k", "3"], "--kl-top-k")?;
    let full =
        args!["train", "--model", model, "--data", pairs, "--output", dir.path().join("never")];
    let full = run(full.into_iter().chain(args!["--objective", "dpo", "--method", "full"]))?;
    assert!(full.code != Some(0) && full.stderr.contains("plain model"), "{}", full.stderr);
    let questions = dir.path().join("questions.csv");
    fs::write(&questions, "question,answer\na,b\n")?;
    let ended = train(&model, &questions, &dir.path().join("never"), &["--objective", "dpo"])?;
    assert!(
        ended.code != Some(0) && ended.stderr.contains("chosen and rejected"),
        "{}",
        ended.stderr
    );
    Ok(())
}

/// Rows with replies and rows without, of tokens and of text.
#[test]
fn what_is_replayed_is_answered_or_a_question() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 6)?;
    let replay = dir.path().join("replay.jsonl");
    fs::write(
        &replay,
        "{\"input_ids\":[5,6,7,8],\"prompt_length\":4}\n{\"input_ids\":[9,6,3,8,2],\"prompt_length\":2}\n",
    )?;
    let more = ["--kl-weight", "0.5", "--replay", &replay.to_string_lossy(), "--max-steps", "6"];
    let more =
        [&more[..], &["--replay-batch-size", "2", "--replay-tokens", "5", "--kl-top-k", "9"]];
    let output = dir.path().join("run");
    let ended = train(&oracle("tiny_llama"), &data, &output, &more.concat())?;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("1 row of"), "{}", ended.stderr);
    let terms = terms(&output)?;
    let kl = |i: usize| terms[i]["kl"].as_f64().ok_or("no kl");
    assert!(kl(0)?.abs() < 1e-6 && kl(5)? > 1e-4, "{terms:?}"); // the start is the identity
    let page = fs::read_to_string(output.join("report.html"))?;
    assert!(page.contains(">kl<") && page.contains(">next-token<"));

    let on_rows = dir.path().join("on-rows");
    let more = ["--kl-weight", "0.5", "--max-steps", "6"];
    let ended = train(&oracle("tiny_llama"), &data, &on_rows, &more)?;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_ne!(losses(&on_rows)?, losses(&output)?);

    let model = chat_model(dir.path(), PLAIN)?;
    let (asked, answers) = (dir.path().join("asked.csv"), dir.path().join("answers.csv"));
    fs::write(&asked, "question\na b\nc\n")?;
    fs::write(&answers, "question,answer\nd e,f\n")?;
    let more = ["--kl-weight", "0.5", "--replay", &asked.to_string_lossy(), "--max-steps", "2"];
    let ended = train(&model, &answers, &dir.path().join("texts"), &more)?;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("2 rows of"), "{}", ended.stderr);
    Ok(())
}

/// With `--response-tokens`, later tokens of a reply change nothing. The bound of the edit is saved with the adapter.
#[test]
fn the_beginning_of_replies_is_learned_alone() -> Result {
    let dir = tempfile::tempdir()?;
    let rows = |last: i64| -> Result<PathBuf> {
        let row = |i: i64| json!({"input_ids": [5, 6, 7 + i, 20, 21 + i, last, last + i], "prompt_length": 3});
        let path = dir.path().join(format!("{last}.jsonl"));
        fs::write(&path, [0, 1, 2, 3].map(|i| row(i).to_string()).join("\n"))?;
        Ok(path)
    };
    let run = |last: i64, name: &str, more: &[&str]| -> Result<Vec<(u64, String)>> {
        let output = dir.path().join(name);
        let asked = ["--max-steps", "6"];
        let ended =
            train(&oracle("tiny_llama"), &rows(last)?, &output, &[&asked[..], more].concat())?;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        losses(&output)
    };
    let two = ["--response-tokens", "2", "--max-edit-norm", "0.05"];
    let bounded = run(30, "a", &two)?;
    assert_eq!(bounded, run(40, "b", &two)?);
    assert_ne!(bounded, run(30, "unbounded", &two[..2])?);
    assert_ne!(run(30, "c", &[])?, run(40, "d", &[])?);
    let all = dir.path().join("all");
    let ended =
        train(&oracle("tiny_llama"), &rows(30)?, &all, &["--learn-prompt", "--max-steps", "1"])?;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let metrics: Value = serde_json::from_str(
        fs::read_to_string(all.join("metrics.jsonl"))?.lines().next().ok_or("no row")?,
    )?;
    assert_eq!(metrics["target_tokens"], 2 * 6, "{metrics}"); // seven tokens each, the first has none before it
    let both = train(
        &oracle("tiny_llama"),
        &rows(30)?,
        &all,
        &["--learn-prompt", "--response-tokens", "2"],
    )?;
    assert!(both.code == Some(1) && both.stderr.contains("--learn-prompt"), "{}", both.stderr);
    let config = fs::read_to_string(dir.path().join("a/reft_config.json"))?;
    assert!(config.contains("\"max_edit_norm\": 0.05"), "{config}");
    let model = oracle("tiny_llama");
    let output = dir.path().join("a");
    let eval =
        args!["eval", "--task", "lm", "--model", model, "--adapter", output, "--data", rows(30)?];
    succeed(eval)?;
    Ok(())
}
