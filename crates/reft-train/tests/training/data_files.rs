//! Data files in the shapes and compressions that people have, against rows that pandas and pyarrow read (`tools/oracle/make_data.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reft_train::{Content, DataSources, Error, Record, read_records, read_table};
use serde_json::{Map, Value};

type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/oracle/data")
}

#[test]
fn files_of_pandas_and_pyarrow_have_the_rows_that_these_read() -> TestResult {
    let truth = std::fs::read(fixtures().join("truth.json"))?;
    let truth: BTreeMap<String, Vec<Map<String, Value>>> = serde_json::from_slice(&truth)?;
    assert!(truth.len() >= 17, "{} files", truth.len());
    for (name, expected) in truth {
        let rows = read_table(&fixtures().join(&name), None)?;
        let rows: Vec<_> = rows.into_iter().map(|row| row.fields).collect();
        assert_eq!(rows, expected, "{name}");
    }
    Ok(())
}

#[test]
fn rows_of_every_file_are_the_same_records() -> TestResult {
    let records = |name: &str| read_records(&fixtures().join(name), None);
    let expected = records("lines.jsonl")?;
    let Content::Completion { prompt, completion } = &expected[1].content else {
        panic!("{:?}", expected[1]);
    };
    assert_eq!(prompt, "Say \"hi, you\"\nin French");
    assert_eq!(completion, "Salut, toi – ça va ?");
    for name in [
        "snappy.parquet",
        "zstd.parquet",
        "gzip-v2.parquet",
        "groups.parquet",
        "pandas.csv",
        "excel.csv",
        "pandas.csv.gz",
        "columns.json",
        "records.json",
        "list-columns.json",
        "data.json",
        "gzip.jsonl",
        "zstd.jsonl",
    ] {
        assert_eq!(records(name)?, expected, "{name}");
    }
    let roles = |record: &Record| -> Vec<String> {
        let messages = record.content.messages().unwrap_or_default();
        messages.iter().map(|m| format!("{}: {}", m.role(), m.text())).collect()
    };
    assert_eq!(roles(&records("messages.parquet")?[0]), ["user: hi", "assistant: yo"]);
    let talks = records("sharegpt.parquet")?;
    assert_eq!(roles(&talks[1]), ["system: be", "user: so", "assistant: fine"]);
    assert_eq!(talks[1].id, "a2");
    Ok(())
}

/// A broken file of each shape, and its error message.
#[test]
fn what_is_wrong_is_said_with_its_place_and_what_to_do() -> TestResult {
    let directory = tempfile::tempdir()?;
    let cases: [(&str, &[u8], &str); 22] = [
        ("a.csv", b"prompt;completion\na;b\n", "has ';' between its names, expected commas"),
        ("a.tsv", b"prompt,completion\na,b\n", "has ',' between its names, expected tabs"),
        ("a.csv", b"prompt,completion\na\n", "line 2: 1 fields, expected 2: prompt, completion"),
        ("a.csv", b"prompt,prompt\na,b\n", "column 2 is called \"prompt\" as one before it"),
        ("a.csv", b"prompt,completion\n", "holds no example"),
        ("a.csv", b"prompt,reply\na,b\n", "line 2: the row has prompt, reply, and for prompt and completion it lacks completion"),
        ("a.csv", b"frage,antwort\na,b\n", "the row has frage, antwort; expected"),
        ("a.csv", b"prompt,completion\na,\n", "it lacks completion; say which column that is with --columns completion=COLUMN"),
        ("a.tsv", b"messages\tn\nhello\t1\n", "the conversation is the text \"hello\""),
        ("a.json", b"{\"prompt\": [\"a\", \"b\"], \"completion\": [\"c\"]}", "column completion has 1 values, prompt has 2"),
        ("a.json", b"{\"data\": [{\"prompt\": \"a\"}]}", "row 1: the row has prompt, and"),
        ("a.json", b"{\"data\": [{\"prompt\": \"a\",}]}", "broken JSON at line 1, column 26"),
        ("a.json", b"{\n\"prompt\": \"a\"\n\"completion\": \"b\"}", "broken JSON at line 3, column 1"),
        ("a.jsonl", b"{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\"\n", "broken JSON at line 2, column 14"),
        ("a.jsonl", b"{\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"alien\", \"value\": \"a\"}]}", "turn 2 is from \"alien\", expected one of human, gpt, system, tool"),
        ("a.jsonl", b"{\"messages\": [{\"role\": \"user\"}], \"functions\": [1]}", "functions is [1], which is not applied here; give them as tools"),
        ("a.txt", b"just words", "expected CSV, TSV, JSON, JSON Lines or Parquet"),
        ("a.parquet", b"PAR1 and nothing that follows it", "the Parquet file cannot be read"),
        ("a.parquet", b"PK\x03\x04 and more", "save the sheet as CSV"),
        ("a.jsonl", b"\x1f\x8b\x08 and more", "packed with gzip and broken"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd and more", "packed with zstd and broken"),
        ("a.jsonl", b"{\"prompt\": \"\xe9\"}", "line 1 is no UTF-8 (byte 0xe9)"),
    ];
    for (name, bytes, words) in cases {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes)?;
        let refused = read_records(&path, None);
        let said = refused.as_ref().map_or_else(ToString::to_string, |rows| format!("{rows:?}"));
        let is_named = said.contains(name);
        assert!(refused.is_err() && is_named && said.contains(words), "{words}\nnot in: {said}");
    }
    for (name, words) in [
        (
            "utf-16.jsonl",
            "the text is UTF-16LE, expected UTF-8; save it as UTF-8, or: iconv -f UTF-16LE -t UTF-8",
        ),
        ("latin-1.csv", "line 2 is no UTF-8 (byte 0xe9)"),
    ] {
        let refused = read_records(&fixtures().join(name), None);
        assert!(
            matches!(&refused, Err(Error::DataFile { reason, .. }) if reason.contains(words)),
            "{refused:?}"
        );
    }
    Ok(())
}

#[test]
fn a_parquet_file_that_is_cut_is_refused() -> TestResult {
    let directory = tempfile::tempdir()?;
    let whole = std::fs::read(fixtures().join("messages.parquet"))?;
    let path = directory.path().join("cut.parquet");
    for length in (4..whole.len()).step_by(61) {
        std::fs::write(&path, &whole[..length])?;
        let refused = read_records(&path, None);
        assert!(matches!(&refused, Err(Error::DataFile { .. })), "{length}: {refused:?}");
    }
    Ok(())
}

#[test]
fn several_files_are_read_one_after_another_with_their_weights() -> TestResult {
    let name = |name: &str| fixtures().join(name).to_string_lossy().into_owned();
    let list = serde_json::json!([name("lines.jsonl"), name("pandas.csv") + ":2"]);
    let sources: DataSources = serde_json::from_value(list)?;
    let read = sources.read(None, read_records)?;
    let weights: Vec<f64> = read.iter().map(|(source, _)| source.weight).collect();
    assert_eq!(weights, [1.0, 2.0]);
    assert_eq!(read[1].1[2].id, format!("row 3 of {}", name("pandas.csv")));
    Ok(())
}
