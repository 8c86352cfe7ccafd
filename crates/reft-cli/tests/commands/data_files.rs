//! Users' own data: columns by name, files of several kinds, and the messages about them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Result;
use crate::conversations::{PLAIN, chat_model};
use crate::files::losses;
use crate::runs::{Run, args, run, succeed};

const QUESTIONS: [(&str, &str); 3] = [("a b", "c"), ("say d", "e, f"), ("g", "h")];

/// The questions in a file of each kind.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let csv: Vec<String> = QUESTIONS.iter().map(|(q, a)| format!("{q},\"{a}\",maths\n")).collect();
    let tsv: Vec<String> = QUESTIONS.iter().map(|(q, a)| format!("{q}\t{a}\tmaths\n")).collect();
    let objects: Vec<Value> = QUESTIONS
        .iter()
        .map(|(q, a)| serde_json::json!({"question": q, "answer": a, "topic": "maths"}))
        .collect();
    let lines: Vec<String> = objects.iter().map(|row| format!("{row}\n")).collect();
    let texts = [
        ("a.csv", format!("question,answer,topic\n{}", csv.concat())),
        ("a.tsv", format!("\u{feff}question\tanswer\ttopic\n{}", tsv.concat())),
        ("a.jsonl", lines.concat()),
        ("a.json", Value::from(objects).to_string()),
    ];
    let write = |(name, text): (&str, String)| {
        let path = dir.join(name);
        fs::write(&path, text)?;
        Ok(path)
    };
    texts.into_iter().map(write).collect()
}

fn train(model: &Path, output: &Path, more: &[&str]) -> Result<Run> {
    let mut args = args!["train", "--model", model, "--output", output, "--max-steps", "2"];
    args.extend(args!["--batch-size", "2", "--threads", "1", "--lr", "1e-2"]);
    args.extend(more.iter().map(Into::into));
    run(args)
}

#[test]
fn every_kind_of_file_trains_alike_and_says_what_columns_are_taken_for() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let mut runs = Vec::new();
    for (i, file) in files(dir.path())?.iter().enumerate() {
        let output = dir.path().join(format!("run{i}"));
        let trained = train(&model, &output, &["--data", &file.to_string_lossy()])?;
        assert_eq!(trained.code, Some(0), "{}", trained.stderr);
        for words in ["a question (question, answer)", "not used: topic"] {
            let times = trained.stderr.matches(words).count();
            assert_eq!(times, 1, "{words} in {}", trained.stderr);
        }
        runs.push(losses(&output)?);
    }
    assert!(runs.windows(2).all(|pair| pair[0] == pair[1]), "{runs:?}");
    assert_eq!(runs[0].len(), 2);
    Ok(())
}

#[test]
fn columns_that_are_named_hold_in_every_command() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let (own, plain) = (dir.path().join("own.csv"), dir.path().join("plain.csv"));
    fs::write(&own, "frage,antwort,topic\na b,c,maths\nsay d,\"e, f\",maths\n")?;
    fs::write(&plain, "prompt,completion\na b,c\nsay d,\"e, f\"\n")?;
    let columns = ["--columns", "prompt=frage,completion=antwort"];
    let (own, plain) = (own.to_string_lossy(), plain.to_string_lossy());
    let mut found = Vec::new();
    for (name, data, columns) in [("own", &own, &columns[..]), ("plain", &plain, &[])] {
        let output = dir.path().join(name);
        let trained = train(&model, &output, &[&["--data", data], columns].concat())?;
        assert_eq!(trained.code, Some(0), "{}", trained.stderr);
        let mut eval = args!["eval", "--model", model, "--task", "lm", "--data", &**data, "--json"];
        eval.extend(columns.iter().map(Into::into));
        let eval: Value = serde_json::from_str(&succeed(eval)?.stdout)?;
        let mut generate = args!["generate", "--model", model, "--input", &**data, "--json"];
        generate.extend(args!["--max-new-tokens", "3"]);
        generate.extend(columns.iter().map(Into::into));
        let generated: Value = serde_json::from_str(&succeed(generate)?.stdout)?;
        found.push((losses(&output)?, eval["loss"].clone(), generated["rows"].clone()));
    }
    assert_eq!(found[0], found[1]);
    let options = fs::read_to_string(dir.path().join("own/train.toml"))?;
    assert!(options.contains("columns = \"prompt=frage,completion=antwort\""), "{options}");

    let output = dir.path().join("refused");
    for (flags, words) in [
        (
            &[][..],
            &[
                "own.csv, line 2: the row has frage, antwort, topic; expected",
                "--columns prompt=COLUMN",
            ][..],
        ),
        (
            &["--columns", "prompt=fragee"],
            &["the column fragee, which no row has; the columns are antwort, frage, topic"],
        ),
        (&["--columns", "promt=frage"], &["the name promt, which rows do not have; use"]),
        (&["--columns", "frage"], &["--columns", "NAME=COLUMN"]),
    ] {
        let refused = train(&model, &output, &[&["--data", &own], flags].concat())?;
        assert_ne!(refused.code, Some(0));
        for words in words {
            assert!(refused.stderr.contains(words), "{words} not in {}", refused.stderr);
        }
        assert!(!output.exists());
    }
    Ok(())
}

#[test]
fn rows_of_several_files_are_taken_by_weight() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let files = files(dir.path())?;
    let (one, other) = (files[0].to_string_lossy(), format!("{}:2", files[2].display()));
    let output = dir.path().join("run");
    let trained = train(&model, &output, &["--data", &one, "--data", &other])?;
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    assert!(trained.stderr.contains("9 examples; 2 steps"), "{}", trained.stderr);
    let options = fs::read_to_string(output.join("train.toml"))?;
    assert!(options.contains(&format!("data = [\"{one}\", \"{other}\"]")), "{options}");
    let resumed = train(&model, &output, &["--resume"])?;
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);
    let refused = train(&model, &dir.path().join("no"), &["--data", &format!("{one}:0")])?;
    assert!(refused.stderr.contains("N above 0"), "{}", refused.stderr);
    Ok(())
}
