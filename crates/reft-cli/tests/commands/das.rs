//! Alignment search and steering on the tiny model, which is given a tokenizer of whole words.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Result;
use crate::runs::{Run, args, oracle, run, succeed, text};

const WORDS: [&str; 16] = [
    "<unk>", "The", "near", "by", "dog", "cat", "child", "bird", "dogs", "cats", "children",
    "birds", "is", "are", "say", "now",
];

/// The tiny model with a tokenizer: a word is a token.
fn model(dir: &Path) -> Result<PathBuf> {
    let model = dir.join("model");
    fs::create_dir(&model)?;
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        fs::copy(oracle("tiny_llama").join(file), model.join(file))?;
    }
    let vocab: Value = WORDS.iter().enumerate().map(|(i, w)| ((*w).to_owned(), json!(i))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" },
    });
    fs::write(model.join("tokenizer.json"), tokenizer.to_string())?;
    Ok(model)
}

const TASK: &str = r#"
name = "Number"
templates = ["The {subject} near The {other}", "The {subject} by The {other}"]
variable = "number"
positions = ["subject", "last"]

[slots]
subject = "nouns"
other = "nouns"

[variables]
number = { class = "subject" }

[answers]
singular = "is"
plural = "are"

[lists.nouns]
singular = ["dog", "cat", "child", "bird"]
plural = ["dogs", "cats", "children", "birds"]
"#;

/// A search of the tiny model, flags after those of a good one.
fn search(dir: &Path, model: &Path, task: &str, flags: &[&str]) -> Result<Run> {
    let file = dir.join("task.toml");
    fs::write(&file, task)?;
    let common = args![
        "das",
        "--model",
        model,
        "--task",
        file,
        "--output",
        dir.join("out"),
        "--layers",
        "1;3",
        "--rank",
        "1",
        "--train-pairs",
        "12",
        "--test-pairs",
        "8",
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--threads",
        "1"
    ];
    run([common, flags.iter().map(Into::into).collect()].concat())
}

fn report(dir: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(dir.join("out/das.json"))?)?)
}

#[test]
fn a_search_writes_its_report_and_goes_on_after_what_is_found() -> Result {
    let dir = tempfile::tempdir()?;
    let model = model(dir.path())?;
    let first = search(dir.path(), &model, TASK, &[])?;
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    let found = report(dir.path())?;
    let rows = found["rows"].as_array().ok_or("no rows")?;
    let places: Vec<String> =
        rows.iter().map(|r| format!("{} {} {}", r["site"], r["position"], r["rank"])).collect();
    assert_eq!(
        places,
        [
            "\"layer 1 block_output\" \"subject\" 1",
            "\"layer 3 block_output\" \"subject\" 1",
            "\"layer 1 block_output\" \"last\" 1",
            "\"layer 3 block_output\" \"last\" 1"
        ]
    );
    for row in rows {
        for measured in [row, &row["random_rotation"], &row["neurons"], &row["untrained_model"]] {
            let number = |name: &str| {
                measured[name].as_f64().ok_or_else(|| format!("no {name}: {measured}"))
            };
            let (iia, low, high) = (number("iia")?, number("low")?, number("high")?);
            assert!(0.0 <= low && low <= iia && iia <= high && high <= 1.0, "{measured}");
            assert_eq!(measured["total"], 8);
            assert_eq!(iia, number("hits")? / 8.0);
        }
    }
    let page = fs::read_to_string(dir.path().join("out/das.html"))?;
    for part in
        ["data-slider=\"rank\"", "data-slide=\"rank\"", "Control: untrained model", "of 8 ("]
    {
        assert!(page.contains(part), "{part} is not on the page");
    }
    assert!(!page.contains("http"), "the page names something outside");
    assert!(
        fs::read_to_string(dir.path().join("out/das.md"))?
            .contains("| layer 3 block_output | last | 1 |")
    );

    // the same again with one more rank: what is found is kept
    let cell = dir.path().join("out/cells/block_output-1/subject/rank-1/cell.json");
    let before = fs::metadata(&cell)?.modified()?;
    let second = search(dir.path(), &model, TASK, &["--rank", "1,3"])?;
    assert_eq!(second.code, Some(0), "{}", second.stderr);
    assert_eq!(fs::metadata(&cell)?.modified()?, before);
    let wider = report(dir.path())?;
    let wider = wider["rows"].as_array().ok_or("no rows")?;
    assert_eq!(wider.len(), 8);
    assert!(rows.iter().all(|row| wider.contains(row)), "{wider:?}");

    // another number of steps: nothing is
    let third = search(dir.path(), &model, TASK, &["--steps", "3", "--no-untrained-model"])?;
    assert_eq!(third.code, Some(0), "{}", third.stderr);
    assert!(fs::metadata(&cell)?.modified()? > before);
    assert!(report(dir.path())?["rows"][0]["untrained_model"].is_null());
    Ok(())
}

#[test]
fn tasks_and_options_that_cannot_be_are_refused() -> Result {
    let dir = tempfile::tempdir()?;
    let model = model(dir.path())?;
    let changed = |from: &str, to: &str| TASK.replacen(from, to, 1);
    for (task, flags, says) in [
        (changed("{subject}", "{verb}"), vec![], "the slot {verb}, which is not under [slots]"),
        (changed("{other}\"", "{other\""), vec![], "{other"),
        (
            changed("subject = \"nouns\"", "subject = \"words\""),
            vec![],
            "list \"words\", which is not under [lists]",
        ),
        (
            changed("class = \"subject\"", "class = \"verb\""),
            vec![],
            "variable number follows from verb",
        ),
        (changed("class = ", "kind = "), vec![], "task.toml, line"),
        (
            changed("variable = \"number\"", "variable = \"gender\""),
            vec![],
            "\"gender\" is no variable",
        ),
        (changed("\"is\"", "\"is now\""), vec![], "the answer \"is now\" is 2 tokens"),
        (changed("\"is\"", "\"are\""), vec![], "all answers are the same"),
        (TASK.to_owned(), vec!["--layers", "4"], "layer 4 is out of range"),
        (TASK.to_owned(), vec!["--rank", "0"], "rank is 0, expected 1 to 64"),
        (TASK.to_owned(), vec!["--rank", "65"], "rank is 65"),
        (TASK.to_owned(), vec!["--rank", "2,1,2"], "rank is 2 twice"),
        (TASK.to_owned(), vec!["--positions", "last,last"], "position is last twice"),
        (TASK.to_owned(), vec!["--positions", "verb"], "position is verb"),
        (TASK.to_owned(), vec!["--positions", "last+1"], "has no position last+1"),
        (TASK.to_owned(), vec!["--sites", "o_proj"], "site is o_proj"),
        (TASK.to_owned(), vec!["--sites", "blocks"], "blocks"),
        (TASK.to_owned(), vec!["--steps", "0"], "steps is 0"),
        (TASK.to_owned(), vec!["--lr", "0"], "lr"),
    ] {
        let refused = search(dir.path(), &model, &task, &flags)?;
        assert_eq!(refused.code, Some(1), "{says}: {}", refused.stderr);
        assert!(refused.stderr.contains(says), "{says} is not in {}", refused.stderr);
    }
    let no_tokenizer = search(dir.path(), &oracle("tiny_llama"), TASK, &[])?;
    assert!(no_tokenizer.stderr.contains("has no tokenizer"), "{}", no_tokenizer.stderr);
    let full = dir.path().join("full");
    fs::create_dir(&full)?;
    fs::write(full.join("note.txt"), "mine")?;
    let refused = search(dir.path(), &model, TASK, &["--output", &text(&full)])?;
    assert!(refused.stderr.contains("is not empty and no search"), "{}", refused.stderr);
    Ok(())
}

#[test]
fn steering_changes_the_reply_as_much_as_it_is_told_to() -> Result {
    let dir = tempfile::tempdir()?;
    let model = model(dir.path())?;
    let (positive, negative) = (dir.path().join("positive.txt"), dir.path().join("negative.txt"));
    fs::write(&positive, "The dogs\nThe cats\n\nThe birds\n")?;
    fs::write(&negative, "The dog\nThe cat\nThe bird\n")?;
    let steer = |flags: Vec<std::ffi::OsString>| {
        let common = args![
            "steer",
            "--model",
            model,
            "--layer",
            "1",
            "--prompt",
            "The child near",
            "--max-new-tokens",
            "6",
            "--threads",
            "1"
        ];
        [common, flags].concat()
    };
    let texts = args!["--positive", positive, "--negative", negative];
    let reply = |more: Vec<std::ffi::OsString>| -> Result<String> {
        Ok(succeed(steer([texts.clone(), more].concat()))?.stdout)
    };
    let plain = args![
        "generate",
        "--model",
        model,
        "--prompt",
        "The child near",
        "--max-new-tokens",
        "6",
        "--threads",
        "1"
    ];
    let plain = succeed(plain)?.stdout;
    assert_eq!(reply(args!["--strength", "0"])?, plain);
    let steered = reply(args!["--strength", "40"])?;
    assert_ne!(steered, plain);
    assert_ne!(reply(args!["--strength", "-40"])?, steered);
    assert_ne!(reply(args!["--strength", "40", "--method", "pca"])?, plain);

    // a trained subspace of dimension 1 is a direction, one of a higher dimension is none
    let found = search(dir.path(), &model, TASK, &["--rank", "1,2", "--no-untrained-model"])?;
    assert_eq!(found.code, Some(0), "{}", found.stderr);
    let cell = |rank: &str| dir.path().join("out/cells/block_output-1/subject").join(rank);
    let along = succeed(steer(args!["--das", cell("rank-1"), "--strength", "500"]))?.stdout;
    assert_ne!(along, plain);
    for (flags, says) in [
        (args!["--das", cell("rank-2")], "name a cell of rank 1"),
        (args!["--das", cell("rank-9")], "rank-9"),
        (args!["--positive", positive], "--negative"),
        (args![], "--positive"),
        ([texts.clone(), args!["--layer", "4"]].concat(), "--layer is 4, the model has 4 layers"),
        ([texts.clone(), args!["--site", "k_proj"]].concat(), "--site is k_proj"),
        ([texts.clone(), args!["--strength", "nan"]].concat(), "strength is NaN"),
        (args!["--positive", positive, "--negative", positive], "same mean hidden state"),
        (args!["--positive", positive, "--negative", dir.path().join("none.txt")], "none.txt"),
    ] {
        let refused = run(steer(flags))?;
        assert!(
            refused.code != Some(0) && refused.stderr.contains(says),
            "{says} is not in {}",
            refused.stderr
        );
    }
    Ok(())
}
