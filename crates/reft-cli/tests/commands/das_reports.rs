//! The report of an alignment search: templates, prompts that fail, controls, colours, and several searches on one page.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::Result;
use crate::das::{TASK, arguments, model, report};
use crate::runs::{Run, args, run, succeed};

fn search(dir: &Path, task: &str, flags: &[&str]) -> Result<Run> {
    let model = dir.join("model");
    run(arguments(dir, &model, task, flags)?)
}

fn read(dir: &Path, file: &str) -> Result<String> {
    Ok(fs::read_to_string(dir.join("out").join(file))?)
}

fn count(value: &Value, name: &str) -> Result<u64> {
    value[name].as_u64().ok_or_else(|| format!("no {name}: {value}").into())
}

#[test]
fn every_template_has_its_share_and_prompts_that_fail_are_told() -> Result {
    let dir = tempfile::tempdir()?;
    model(dir.path())?;
    let done = search(dir.path(), TASK, &["--test-pairs", "24"])?;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let found = report(dir.path())?;
    let templates = found["templates"].as_array().ok_or("no templates")?;
    let names: Vec<&str> = templates.iter().filter_map(|own| own["template"].as_str()).collect();
    assert_eq!(names, ["The {subject} near The {other}", "The {subject} by The {other}"]);
    let sum = |of: &str, number: &str| -> Result<u64> {
        templates.iter().map(|own| count(&own[of], number)).sum()
    };
    for of in ["base_accuracy", "no_intervention"] {
        for number in ["hits", "total"] {
            assert_eq!(sum(of, number)?, count(&found[of], number)?, "{of} {number}");
        }
        assert!(templates.iter().all(|own| own[of]["total"].as_u64() > Some(0)), "{of}");
    }
    for row in found["rows"].as_array().ok_or("no rows")? {
        let own = row["by_template"].as_array().ok_or("no shares of templates")?;
        let sum = |number| own.iter().map(|share| count(share, number)).sum::<Result<u64>>();
        assert_eq!((sum("hits")?, sum("total")?), (count(row, "hits")?, count(row, "total")?));
    }
    // the model is not trained for the task, so some bases and swaps fail; at most 12 wrong bases are shown
    let wrong = count(&found["base_accuracy"], "total")? - count(&found["base_accuracy"], "hits")?;
    let shown = found["wrong_bases"].as_array().ok_or("no wrong bases")?;
    assert!(wrong > 0, "the test has no power");
    assert_eq!(shown.len() as u64, wrong.min(12));
    let failures = found["failures"].as_array().ok_or("no failures")?;
    assert_eq!(failures.len(), 1, "one rank");
    let best = &failures[0];
    let row = found["rows"].as_array().into_iter().flatten();
    let row = row.max_by_key(|row| row["hits"].as_u64()).ok_or("no rows")?;
    let failed = count(row, "total")? - count(row, "hits")?;
    assert_eq!(count(best, "failed")?, failed);
    assert!(failed > 0, "the test has no power");
    let (text, page) = (read(dir.path(), "das.md")?, read(dir.path(), "das.html")?);
    for own in best["first"].as_array().into_iter().flatten().chain(shown) {
        assert_ne!(own["expected"], own["given"], "{own}");
        for answer in ["expected", "given"] {
            assert!(["is", "are"].contains(&own[answer].as_str().unwrap_or_default()), "{own}");
        }
        let base = own["base"].as_str().ok_or("no base")?;
        assert!(base.starts_with("The ") && text.contains(base) && page.contains(base), "{base}");
    }
    for part in ["By template", "What fails at layer"] {
        assert!(text.contains(part) && page.contains(part), "{part}");
    }

    // a second run reads the finished subspaces and reports the same
    let again = search(dir.path(), TASK, &["--test-pairs", "24"])?;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    let again = report(dir.path())?;
    for field in ["rows", "failures", "templates", "wrong_bases"] {
        assert_eq!(again[field], found[field], "{field}");
    }
    Ok(())
}

#[test]
fn colours_begin_without_a_swap_and_only_controls_that_were_made_are_listed() -> Result {
    let dir = tempfile::tempdir()?;
    model(dir.path())?;
    let control = "the same search in a model of random weights";
    for (flags, is_listed) in [(&["--no-untrained-model"][..], false), (&[][..], true)] {
        let done = search(dir.path(), TASK, flags)?;
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        assert_eq!(read(dir.path(), "das.md")?.contains(control), is_listed);
        assert_eq!(read(dir.path(), "das.html")?.contains(control), is_listed);
    }
    let (found, page) = (report(dir.path())?, read(dir.path(), "das.html")?);
    let without = found["no_intervention"]["iia"].as_f64().ok_or("no share without a swap")?;
    assert!(without > 0.0 && without < 1.0, "the test has no power: {without}");
    assert!(page.contains("%, no swap</text>"), "the scale does not say where it begins");
    for row in found["rows"].as_array().into_iter().flatten() {
        let iia = row["iia"].as_f64().ok_or("no IIA")?;
        let shade = ((iia - without) / (1.0 - without)).clamp(0.0, 1.0);
        let title = format!(
            "{} at {}, rank 1",
            row["site"].as_str().unwrap_or_default(),
            row["position"].as_str().unwrap_or_default()
        );
        let cell = page.split("<title>").find(|part| part.starts_with(&title)).ok_or("no cell")?;
        assert!(cell.contains(&format!("fill-opacity=\"{shade:.3}\"")), "{iia}: {cell}");
    }
    let whole = search(dir.path(), TASK, &["--alignment", "whole", "--no-untrained-model"])?;
    assert_eq!(whole.code, Some(0), "{}", whole.stderr);
    assert!(read(dir.path(), "das.md")?.contains("Controls: none"));
    Ok(())
}

#[test]
fn classes_of_one_word_are_enough_and_repeated_pairs_are_said() -> Result {
    let dir = tempfile::tempdir()?;
    model(dir.path())?;
    let own = TASK
        .replace("subject = \"nouns\"", "subject = { singular = [\"dog\"], plural = [\"dogs\"] }");
    let done = search(dir.path(), &own, &["--no-untrained-model"])?;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let few =
        TASK.replace(", \"child\", \"bird\"]", "]").replace(", \"children\", \"birds\"]", "]");
    let flags = ["--no-untrained-model", "--train-pairs", "60", "--test-pairs", "20"];
    let done = search(dir.path(), &few, &flags)?;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let repeated = report(dir.path())?["repeated"].as_u64().ok_or("not counted")?;
    assert!((1..=20).contains(&repeated), "{repeated}");
    let said = format!(
        "{repeated} of the 20 held-out counterfactuals are word for word among the training ones"
    );
    assert!(read(dir.path(), "das.md")?.contains(&said));

    let shared = TASK.replace("[\"dog\", \"cat\", \"child\", \"bird\"]", "[\"dog\"]");
    let refused = search(dir.path(), &shared, &[])?;
    assert!(
        refused.stderr.contains("class singular has 1 word, and 2 slots"),
        "{}",
        refused.stderr
    );
    let empty = own.replace("[\"dogs\"]", "[\"dogs\", \"cats\"], dual = []");
    let refused = search(dir.path(), &empty, &[])?;
    assert!(refused.stderr.contains("class dual has no word"), "{}", refused.stderr);
    Ok(())
}

#[test]
fn searches_are_on_one_page_with_one_scale() -> Result {
    let dir = tempfile::tempdir()?;
    model(dir.path())?;
    let out = dir.path().join("out");
    let flags = ["--rank", "1,3", "--no-untrained-model"];
    assert_eq!(search(dir.path(), TASK, &flags)?.code, Some(0));
    let first = dir.path().join("first");
    fs::rename(&out, &first)?;
    let other = TASK.replace(
        "subject = \"nouns\"\nother",
        "subject = { singular = [\"dog\"], plural = [\"dogs\"] }\nother",
    );
    assert_eq!(search(dir.path(), &other, &["--rank", "1", "--no-untrained-model"])?.code, Some(0));
    let page = dir.path().join("both.html");
    succeed(args!["report", first, out, "--output", page])?;
    let html = fs::read_to_string(&page)?;
    for title in [
        "first: number, block_output, rank 1",
        "first: number, block_output, rank 3",
        "out: number, block_output, rank 1",
        "Without any swap: ",
        "one scale of colours",
    ] {
        assert!(html.contains(title), "{title} is not on the page");
    }
    // every map has the same colour scale, which begins at the lowest level of the searches
    let level = |dir: &Path| -> Result<f64> {
        let text: Value = serde_json::from_slice(&fs::read(dir.join("das.json"))?)?;
        text["no_intervention"]["iia"].as_f64().ok_or_else(|| "no share".into())
    };
    let lowest = level(&first)?.min(level(&out)?);
    let scales: Vec<&str> =
        html.split("<text").filter(|part| part.contains(", no swap</text>")).collect();
    assert!(scales.len() >= 3, "{}", scales.len());
    let percent = format!("{:.1}", 100.0 * lowest);
    let said = format!(">{} %, no swap", percent.trim_end_matches(".0"));
    assert!(scales.iter().all(|scale| scale.contains(&said)), "{said}: {scales:?}");

    let refused = run(args!["report", first, dir.path().join("model"), "--output", page])?;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("holds no search of reft das"), "{}", refused.stderr);
    let refused = run(args!["report", first, out])?;
    assert!(refused.stderr.contains("--output is missing"), "{}", refused.stderr);
    Ok(())
}
