//! Directions as adapters: made, trained, kept, moved, calibrated, read along, swept, and carried to llama.cpp and back.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Result;
use crate::das::model;
use crate::runs::{Run, args, overridden, refuse, run, succeed};

/// The tiny model, and two files of texts.
fn set_up(dir: &Path) -> Result<(PathBuf, Vec<OsString>)> {
    let model = model(dir)?;
    let (positive, negative) = (dir.join("positive.txt"), dir.join("negative.txt"));
    fs::write(&positive, "The dogs near\nThe cats are\nThe birds say now\n")?;
    fs::write(&negative, "The dog by\nThe cat is\nThe bird near The dog\n")?;
    Ok((model, args!["--positive", positive, "--negative", negative]))
}

const PROMPT: [&str; 6] = ["--prompt", "The child near", "--max-new-tokens", "6", "--threads", "1"];

fn prompt() -> Vec<OsString> {
    PROMPT.map(OsString::from).to_vec()
}

#[test]
fn a_direction_is_kept_as_an_adapter_that_does_the_same() -> Result {
    let dir = tempfile::tempdir()?;
    let (model, texts) = set_up(dir.path())?;
    let kept = dir.path().join("plural");
    let steer = |flags: Vec<OsString>| -> Result<Run> {
        run([args!["steer", "--model", model, "--layer", "2"], texts.clone(), flags].concat())
    };
    let made = succeed(
        [
            args!["steer", "--model", model, "--layer", "2", "--strength", "30", "--output", kept],
            texts.clone(),
            prompt(),
        ]
        .concat(),
    )?;
    let plain = succeed([args!["generate", "--model", model], prompt()].concat())?.stdout;
    assert_ne!(made.stdout, plain);
    assert!(made.stderr.contains("times as long as the hidden states"), "{}", made.stderr);
    let with = |command: &str, flags: Vec<OsString>| {
        succeed([args![command, "--model", model, "--adapter", kept], flags, prompt()].concat())
    };
    assert_eq!(with("generate", args![])?.stdout, made.stdout);
    assert_eq!(with("steer", args![])?.stdout, made.stdout);
    assert_eq!(with("steer", args!["--strength", "0"])?.stdout, plain);
    let turned = steer([args!["--strength", "-30"], prompt()].concat())?.stdout;
    assert_eq!(with("steer", args!["--strength", "-1"])?.stdout, turned);
    let said: Value = serde_json::from_str(&succeed(args!["inspect", kept, "--json"])?.stdout)?;
    assert_eq!(said["method"], "steering");
    assert_eq!(said["sites"][0]["layer"], 2);

    // at another layer only with --other-layer; then as an ablation
    let refused = refuse(
        [args!["steer", "--model", model, "--adapter", kept, "--layer", "1"], prompt()].concat(),
    );
    assert!(
        refused.stderr.contains("was made at 2") && refused.stderr.contains("--other-layer"),
        "{}",
        refused.stderr
    );
    let moved = with("steer", args!["--layer", "1", "--other-layer"])?.stdout;
    assert_ne!(moved, plain);
    with("steer", args!["--ablate"])?;

    // to llama.cpp's file and back
    let (file, again) = (dir.path().join("plural.gguf"), dir.path().join("again"));
    succeed(args!["export", "--to", "control-vector", "--adapter", kept, "--output", file])?;
    succeed(args![
        "import",
        "--from",
        "control-vector",
        file,
        "--model",
        model,
        "--output",
        again
    ])?;
    let found =
        succeed([args!["generate", "--model", model, "--adapter", again], prompt()].concat())?;
    assert_eq!(found.stdout, made.stdout);
    Ok(())
}

#[test]
fn strengths_are_calibrated_and_texts_are_read_along_a_direction() -> Result {
    let dir = tempfile::tempdir()?;
    let (model, texts) = set_up(dir.path())?;
    let steer = |flags: Vec<OsString>| {
        [args!["steer", "--model", model, "--layer", "2"], texts.clone(), flags].concat()
    };
    for (flag, nats) in [("--kl=0.05", 0.05), ("--kl=0.2", 0.2)] {
        let kept = dir.path().join(flag);
        let said = succeed(steer(args![flag, "--output", kept]))?.stderr;
        let found = said.lines().find_map(|line| {
            let (_, rest) = line.split_once(": ")?;
            rest.strip_suffix(" nats per token")?.parse::<f64>().ok()
        });
        let found = found.ok_or_else(|| format!("no divergence in {said}"))?;
        assert!((found / nats - 1.0).abs() < 0.02, "{flag}: {found}");
    }
    let rows = dir.path().join("rows.jsonl");
    fs::write(
        &rows,
        "{\"text\": \"The cats say\", \"concept\": 1}\n{\"text\": \"The cat is\", \"concept\": 0}\n",
    )?;
    let found = succeed(steer(args!["--detect", rows, "--json"]))?.stdout;
    let found: Value = serde_json::from_str(&found)?;
    let area = found[0]["area_under_curve"].as_f64().ok_or("no area")?;
    assert!((0.0..=1.0).contains(&area));
    let latents = &found[0]["texts"][0]["latents"];
    assert_eq!(latents.as_array().map(Vec::len), Some(3));

    for (flags, says) in [
        (
            steer(args!["--kl", "0", "--output", dir.path().join("x")]),
            "--kl is 0, expected a number above 0",
        ),
        (
            steer([args!["--strength", "1", "--strength", "2"], prompt()].concat()),
            "--strength is given 2 times, and 1 things steer",
        ),
        (steer(args!["--detect", dir.path().join("none.jsonl")]), "none.jsonl"),
        (
            [args!["steer", "--model", model], texts.clone(), prompt()].concat(),
            "--layer is missing",
        ),
        ([args!["steer", "--model", model], prompt()].concat(), "nothing steers"),
    ] {
        let refused = refuse(flags);
        assert!(refused.stderr.contains(says), "{says} is not in {}", refused.stderr);
    }
    Ok(())
}

/// The strength found gives the same reply as `--strength`. The reply has the target perplexity, or changes right past this strength, because
/// replies change by whole tokens.
#[test]
fn strengths_are_found_by_the_perplexity_of_the_reply() -> Result {
    let dir = tempfile::tempdir()?;
    let (model, texts) = set_up(dir.path())?;
    let steer = |flags: Vec<OsString>| {
        [args!["steer", "--model", model, "--layer", "2"], texts.clone(), flags, prompt()].concat()
    };
    let number = |said: &str, before: &str| -> Result<f64> {
        let (_, rest) = said.split_once(before).ok_or_else(|| format!("{before} in {said}"))?;
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        Ok(rest[..end].trim_end_matches('.').parse()?)
    };
    let refused = refuse(steer(args!["--perplexity", "1"]));
    let plain = number(&refused.stderr, "the plain reply's is ")?;
    assert!(refused.stderr.contains("give a higher one"), "{}", refused.stderr);
    for times in [1.2, 2.0] {
        let target = plain * times;
        let found = succeed(steer(args!["--perplexity", target.to_string()]))?;
        let factor = number(&found.stderr, "strengths times ")?;
        let reached = number(&found.stderr, "the reply's perplexity is ")?;
        assert!(reached < 1.02 * target, "{plain} {reached} {target}");
        assert_eq!(number(&found.stderr, "the plain one's ")?, plain);
        let given = succeed(steer(args!["--strength", factor.to_string()]))?;
        assert_eq!(given.stdout, found.stdout, "{times}");
        let past = succeed(steer(args!["--strength", (1.0002 * factor).to_string()]))?;
        let is_reached = (reached / target - 1.0).abs() < 0.02;
        assert!(is_reached || past.stdout != found.stdout, "{plain} {reached} {target}");
    }
    Ok(())
}

#[test]
fn directions_are_trained_judged_and_swept() -> Result {
    let dir = tempfile::tempdir()?;
    let (model, texts) = set_up(dir.path())?;
    let file = |name: &str, rows: &str| -> Result<PathBuf> {
        let path = dir.path().join(name);
        fs::write(&path, rows)?;
        Ok(path)
    };
    let pairs = file(
        "pairs.jsonl",
        "{\"prompt\": \"The child\", \"chosen\": \" dogs are\", \"rejected\": \" dog is\"}\n\
         {\"prompt\": \"The bird\", \"chosen\": \" cats are\", \"rejected\": \" cat is now\"}\n",
    )?;
    let rows = file(
        "rows.jsonl",
        "{\"text\": \"The dogs are\", \"concept\": 1}\n{\"text\": \"The dog is\", \"concept\": 0}\n\
         {\"text\": \"cats say now\", \"concept\": 1}\n{\"text\": \"cat is near\", \"concept\": 0}\n",
    )?;
    let train = |name: &str, flags: Vec<OsString>| {
        let output = dir.path().join(name);
        let usual = args![
            "--model",
            model,
            "--output",
            output,
            "--batch-size",
            "2",
            "--max-steps",
            "6",
            "--threads",
            "1"
        ];
        let trained = overridden([args!["train"], usual, flags].concat());
        (output, trained)
    };
    let steering = |objective: &str, data: &PathBuf| {
        args![
            "--method",
            "steering",
            "--layers",
            "1",
            "--objective",
            objective,
            "--data",
            data,
            "--lr",
            "0.1"
        ]
    };
    let (reps, trained) =
        train("reps", [steering("reps", &pairs), args!["--template", "plain"]].concat());
    succeed(trained)?;
    let (_, trained) = train(
        "reps-factors",
        [steering("reps", &pairs), args!["--template", "plain", "--steering-factors", "2,4"]]
            .concat(),
    );
    succeed(trained)?;
    let (r1, trained) = train("r1", steering("reft-r1", &rows));
    succeed(trained)?;
    // the divergence is computed by a forward of its own
    let (close, trained) =
        train("close", [steering("reft-r1", &rows), args!["--kl-weight", "0.5"]].concat());
    succeed(trained)?;
    let metrics = fs::read_to_string(close.join("metrics.jsonl"))?;
    let last: Value = serde_json::from_str(metrics.lines().last().ok_or("no step")?)?;
    assert!(last["terms"]["kl"].as_f64() > Some(1e-6), "{metrics}");
    let (judge, trained) =
        train("judge", args!["--method", "head", "--objective", "classification", "--data", rows]);
    succeed(trained)?;
    let prompts = file("prompts.txt", "The child near\nThe bird by\n")?;
    let page = dir.path().join("sweep.html");
    let sweep = [
        args![
            "steer",
            "--model",
            model,
            "--layer",
            "1",
            "--method",
            "means,pca,probe",
            "--adapter",
            reps,
            "--adapter",
            r1
        ],
        texts,
        args![
            "--kl",
            "0.05",
            "--sweep",
            "0.5,1",
            "--judge",
            judge,
            "--prompts",
            prompts,
            "--page",
            page
        ],
        args!["--max-new-tokens", "4", "--threads", "1", "--json"],
    ];
    let found = succeed(sweep.concat())?.stdout;
    let found: Value = serde_json::from_str(&found)?;
    let points = found["points"].as_array().ok_or("no points")?;
    let names: Vec<&str> = points.iter().filter_map(|point| point["name"].as_str()).collect();
    let expected = [
        "reps",
        "reps",
        "r1",
        "r1",
        "means, layer 1",
        "means, layer 1",
        "pca, layer 1",
        "pca, layer 1",
        "probe, layer 1",
        "probe, layer 1",
    ];
    assert_eq!(names, expected);
    for pair in points.chunks(2) {
        let number = |point: &Value, field: &str| point[field].as_f64().ok_or("no number");
        assert!((number(&pair[1], "kl")? / 0.05 - 1.0).abs() < 0.02, "{pair:?}");
        assert!(number(&pair[0], "kl")? < number(&pair[1], "kl")?);
        assert!((0.0..=1.0).contains(&number(&pair[1]["replies"], "concept")?));
        assert!(number(&pair[1]["replies"], "perplexity")? > 1.0);
    }
    let page = fs::read_to_string(page)?;
    assert!(page.contains("<svg") && page.contains("probe, layer 1"));
    // next to each other on a wide screen, and a table that scrolls by itself on a narrow one
    assert!(
        page.contains("<div class=\"plots\">") && page.contains("<div class=\"scroll\"><table>")
    );

    // data and options that cannot be trained
    let one_kind = file("one.jsonl", "{\"text\": \"The dogs are\", \"concept\": 1}\n")?;
    let third = file("third.jsonl", "{\"text\": \"The dogs are\", \"concept\": 2}\n")?;
    for (flags, says) in [
        (steering("reft-r1", &one_kind), "no row is without the concept (0)"),
        (steering("reft-r1", &third), "its concept is \"2\", expected 1"),
        (
            args!["--method", "loreft", "--objective", "reft-r1", "--data", rows],
            "--method is loreft, and reft-r1 trains directions, expected steering with edit add",
        ),
        (
            args![
                "--method",
                "loreft",
                "--objective",
                "reps",
                "--data",
                pairs,
                "--steering-factors",
                "2"
            ],
            "--method is loreft, and reps trains directions",
        ),
        (
            [steering("reps", &pairs), args!["--steering-factors", "2,0"]].concat(),
            "expected numbers above 0 with commas between them",
        ),
        ([steering("reps", &pairs), args!["--top-k", "3"]].concat(), "objective reft-r1"),
    ] {
        let refused = refuse(train("refused", flags).1);
        assert!(refused.stderr.contains(says), "{says} is not in {}", refused.stderr);
    }
    Ok(())
}
