//! Alignment search and steering on the tiny model, which is given a tokenizer of whole words.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Result;
use crate::runs::{Run, args, oracle, overridden, refuse, run, succeed, text};

const WORDS: [&str; 16] = [
    "<unk>", "The", "near", "by", "dog", "cat", "child", "bird", "dogs", "cats", "children",
    "birds", "is", "are", "say", "now",
];

/// The tiny model with a tokenizer: a word is a token.
pub fn model(dir: &Path) -> Result<PathBuf> {
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

pub const TASK: &str = r#"
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

/// Runs a search of the tiny model with `flags`, and defaults for the other flags.
fn search(dir: &Path, model: &Path, task: &str, flags: &[&str]) -> Result<Run> {
    run(arguments(dir, model, task, flags)?)
}

/// The command line of a search.
pub fn arguments(dir: &Path, model: &Path, task: &str, flags: &[&str]) -> Result<Vec<OsString>> {
    let file = dir.join("task.toml");
    fs::write(&file, task)?;
    let mut words = args!["das", "--model", model, "--task", file];
    let output = text(&dir.join("out"));
    let defaults = [
        ("--output", output.as_str()),
        ("--layers", "1;3"),
        ("--train-pairs", "12"),
        ("--test-pairs", "8"),
        ("--steps", "2"),
        ("--batch-size", "4"),
        ("--threads", "1"),
        ("--rank", "1"),
    ];
    let is_given =
        |flag: &str| flags.contains(&flag) || (flag == "--rank" && flags.contains(&"--alignment"));
    for (flag, value) in defaults.into_iter().filter(|(flag, _)| !is_given(flag)) {
        words.extend(args![flag, value]);
    }
    words.extend(flags.iter().map(OsString::from));
    Ok(words)
}

pub fn report(dir: &Path) -> Result<Value> {
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

    // the same search with one more rank keeps the finished cells
    let cell = dir.path().join("out/cells/block_output-1/subject/rank-1/cell.json");
    let before = fs::metadata(&cell)?.modified()?;
    let second = search(dir.path(), &model, TASK, &["--rank", "1,3"])?;
    assert_eq!(second.code, Some(0), "{}", second.stderr);
    assert_eq!(fs::metadata(&cell)?.modified()?, before);
    let wider = report(dir.path())?;
    let wider = wider["rows"].as_array().ok_or("no rows")?;
    assert_eq!(wider.len(), 8);
    assert!(rows.iter().all(|row| wider.contains(row)), "{wider:?}");

    // with another number of steps no cell is kept
    let third = search(dir.path(), &model, TASK, &["--steps", "3", "--no-untrained-model"])?;
    assert_eq!(third.code, Some(0), "{}", third.stderr);
    assert!(fs::metadata(&cell)?.modified()? > before);
    assert!(report(dir.path())?["rows"][0]["untrained_model"].is_null());
    Ok(())
}

/// Rows of a search, by site, token, rank and number of dimensions swapped.
fn found(dir: &Path) -> Result<Vec<(String, i64, i64, Value)>> {
    let report = report(dir)?;
    let rows = report["rows"].as_array().ok_or("no rows")?;
    let number = |row: &Value, name: &str| row[name].as_i64().ok_or(format!("no {name}: {row}"));
    let row = |row: &Value| {
        let site = row["site"].as_str().unwrap_or_default().to_owned();
        Ok((site, number(row, "rank")?, number(row, "dimensions")?, row.clone()))
    };
    rows.iter().map(row).collect()
}

#[test]
fn what_is_swapped_can_be_learned_or_be_neurons_heads_or_everything() -> Result {
    let dir = tempfile::tempdir()?;
    let model = model(dir.path())?;
    let run = |flags: &[&str]| -> Result<Vec<(String, i64, i64, Value)>> {
        let common = ["--positions", "last", "--no-untrained-model"];
        let done = search(dir.path(), &model, TASK, &[&common, flags].concat())?;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        found(dir.path())
    };
    let cell = |name: &str| {
        let path = dir.path().join("out/cells").join(name).join("alignment.safetensors");
        reft_models::load_safetensors(&path)
    };
    // a boundary's learning rate is ten times the rotation's: it falls from 32 coordinates to 32 - 64 · (0.05 + 0.025)
    let flags = ["--alignment", "boundless", "--lr", "5e-3"];
    for (site, rank, dimensions, row) in run(&flags)? {
        assert_eq!((rank, dimensions), (64, 28), "{site}");
        assert!(row["random_rotation"]["iia"].is_f64() && row["start"].is_null());
        let tensors = cell(&format!("block_output-{}/last/boundless", row["layer"]))?;
        assert_eq!(tensors["0.rotation"].size(), [64, 64]);
        let open = Vec::<f32>::try_from(&tensors["0.gate"])?;
        let expected: Vec<f32> = (0..64).map(|i| if i < 28 { 1.0 } else { 0.0 }).collect();
        assert_eq!(open, expected);
    }
    let text = fs::read_to_string(dir.path().join("out/das.md"))?;
    assert!(text.contains("| layer 3 block_output | last | 64 | 28 |"), "{text}");
    let page = fs::read_to_string(dir.path().join("out/das.html"))?;
    assert!(page.contains("rank 64, 28 dimensions swapped"));

    for (_, rank, dimensions, _) in run(&["--alignment", "sigmoid-mask"])? {
        assert!(rank == 64 && (1..64).contains(&dimensions), "{dimensions}");
    }
    // the whole hidden state is swapped: nothing is trained, and there is no random rotation to compare with
    for (site, rank, dimensions, row) in run(&["--alignment", "whole"])? {
        assert_eq!((rank, dimensions), (64, 64), "{site}");
        assert!(row["loss"].is_null() && row["random_rotation"].is_null(), "{row}");
    }
    for (site, rank, dimensions, row) in run(&["--alignment", "neurons", "--rank", "2,64"])? {
        assert_eq!(rank, dimensions, "{site}");
        assert!(row["loss"].is_null() && row["neurons"].is_null(), "{row}");
        let tensors = cell(&format!("block_output-{}/last/neurons-{rank}", row["layer"]))?;
        let ones = tensors["0.rotation"].eq(1.0).sum(tch::Kind::Int64).int64_value(&[]);
        assert_eq!(ones, rank);
    }
    let heads = run(&["--sites", "attention_head", "--heads", "0,2", "--rank", "16"])?;
    let sites: Vec<&str> = heads.iter().map(|(site, ..)| site.as_str()).collect();
    assert_eq!(sites, ["layer 1 head_0", "layer 3 head_0", "layer 1 head_2", "layer 3 head_2"]);
    assert_eq!(cell("head_2-3/last/rank-16")?["0.rotation"].size(), [16, 16]);
    Ok(())
}

#[test]
fn tasks_and_options_that_cannot_be_are_refused() -> Result {
    let dir = tempfile::tempdir()?;
    let model = model(dir.path())?;
    let changed = |from: &str, to: &str| TASK.replacen(from, to, 1);
    for (task, flags, says) in [
        (changed("{subject}", "{verb}"), vec![], "the slot {verb}, which is not under [slots]"),
        (
            changed("subject = ", "\"../../../x\" = \"nouns\"\nsubject = "),
            vec![],
            "slot \"../../../x\" is no plain name",
        ),
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
        (TASK.to_owned(), vec!["--sites", "head_4"], "site is head_4, expected head_0 to head_3"),
        (TASK.to_owned(), vec!["--sites", "head_1", "--rank", "17"], "1 to 16, the size of head_1"),
        (TASK.to_owned(), vec!["--heads", "1"], "add it to --sites"),
        (TASK.to_owned(), vec!["--alignment", "subspace"], "alignment is subspace"),
        (TASK.to_owned(), vec!["--alignment", "whole", "--rank", "1"], "rank is 1, expected none"),
        (TASK.to_owned(), vec!["--steps", "0"], "steps is 0"),
        (TASK.to_owned(), vec!["--lr", "0"], "lr"),
    ] {
        let refused = refuse(arguments(dir.path(), &model, &task, &flags)?);
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

const EQUALITY: &str = r#"
name = "Equality"
variable = "right"

[network]
object_size = 2
hidden_layers = 2
width = 8
examples = 2000
epochs = 2
batch_size = 64
lr = 5e-3
seed = 3

[search]
rank = [2]
train_pairs = 300
test_pairs = 100
steps = 20
batch_size = 50
lr = 1e-2
"#;

#[test]
fn a_task_with_its_own_network_is_searched_without_a_model() -> Result {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("equality.toml");
    fs::write(&file, EQUALITY)?;
    let out = dir.path().join("out");
    let das = |flags: Vec<std::ffi::OsString>| {
        run([args!["das", "--task", file, "--output", out, "--threads", "1"], flags].concat())
    };
    let done = das(args!["--sites", "block_input,block_output", "--layers", "0;1"])?;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let rows = found(dir.path())?;
    let sites: Vec<&str> = rows.iter().map(|(site, ..)| site.as_str()).collect();
    let layers = |component| [0, 1].map(|layer| format!("layer {layer} {component}"));
    assert_eq!(sites, [layers("block_input"), layers("block_output")].concat());
    for (site, rank, dimensions, row) in &rows {
        assert_eq!((*rank, *dimensions, &row["total"]), (2, 2, &json!(100)), "{site}");
        assert!(row["untrained_model"]["iia"].is_f64() && row["start"]["iia"].is_f64(), "{row}");
    }
    let report = report(dir.path())?;
    assert_eq!(report["variable"], "y = z");
    assert_eq!(report["base_accuracy"]["total"], 400);
    assert!(fs::read_to_string(out.join("das.html"))?.contains("layer 1 block_output at last"));

    for (flags, says) in [
        (args!["--model", oracle("tiny_llama")], "trains a network of its own; leave --model"),
        (args!["--layers", "2"], "layer 2 is out of range"),
        (args!["--positions", "subject"], "position is subject, expected last"),
        (args!["--sites", "mlp_output"], "a plain network has no other"),
        (args!["--sites", "block_output", "--rank", "9"], "rank is 9, expected 1 to 8"),
    ] {
        let refused = das(flags)?;
        assert_eq!(refused.code, Some(1), "{says}: {}", refused.stderr);
        assert!(refused.stderr.contains(says), "{says} is not in {}", refused.stderr);
    }
    fs::write(&file, EQUALITY.replace("variable = \"right\"", "variable = \"both\""))?;
    assert!(das(args![])?.stderr.contains("line 3"));
    fs::write(&file, TASK)?;
    assert!(das(args![])?.stderr.contains("name a model with --model"));
    Ok(())
}

#[test]
fn steering_changes_the_reply_as_much_as_it_is_told_to() -> Result {
    let dir = tempfile::tempdir()?;
    let model = model(dir.path())?;
    let (positive, negative) = (dir.path().join("positive.txt"), dir.path().join("negative.txt"));
    fs::write(&positive, "The dogs\nThe cats\n\nThe birds\n")?;
    fs::write(&negative, "The dog\nThe cat\nThe bird\n")?;
    let prompt = args!["--prompt", "The child near", "--max-new-tokens", "6", "--threads", "1"];
    let steer = |flags: Vec<std::ffi::OsString>| {
        overridden(
            [args!["steer", "--model", model, "--layer", "1"], prompt.clone(), flags].concat(),
        )
    };
    let texts = args!["--positive", positive, "--negative", negative];
    let reply = |more: Vec<std::ffi::OsString>| -> Result<String> {
        Ok(succeed(steer([texts.clone(), more].concat()))?.stdout)
    };
    let plain = succeed([args!["generate", "--model", model], prompt.clone()].concat())?.stdout;
    assert_eq!(reply(args!["--strength", "0"])?, plain);
    let steered = reply(args!["--strength", "40"])?;
    assert_ne!(steered, plain);
    assert_ne!(reply(args!["--strength", "-40"])?, steered);
    assert_ne!(reply(args!["--strength", "40", "--method", "pca"])?, plain);

    // a trained subspace of rank 1 is a direction; a subspace of higher rank is refused
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
        let refused = refuse(steer(flags));
        assert!(
            refused.code != Some(0) && refused.stderr.contains(says),
            "{says} is not in {}",
            refused.stderr
        );
    }
    Ok(())
}
