use reft_bench::Error;

use crate::tiny_model::{Bench, CONFIG, TASK, TestResult};

/// The text of an error, with its causes.
fn message(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[test]
fn bad_data_and_tasks_are_refused_before_any_training() -> TestResult {
    let bench = Bench::new()?;
    let cases = [
        ("{text}:", "{sentence}:", "train.tsv, line 1: the row has no column \"sentence\""),
        ("1 = \"y\"", "2 = \"y\"", "label \"1\" has no word"),
        ("\"y\"", "\"yes\"\n[x]", "unknown field `x`"),
        ("\"plain\"", "\"chat\"", "the tokenizer has no chat template"),
        (
            "template = \"plain\"",
            "template = \"plain\"\nscoring = \"next_token\"\ncompletion = \"is {answer}\"",
            "is 4 tokens; scoring next_token takes one token",
        ),
        (
            "columns = [\"text\", \"label\"]",
            "columns = [\"text\"]",
            "train.tsv, line 1: 2 fields, expected 1",
        ),
    ];
    for (from, to, expected) in cases {
        bench.write("task.toml", &TASK.replacen(from, to, 1))?;
        match bench.load(bench.config("task", "task")?) {
            Err(error) => {
                assert!(message(&error).contains(expected), "{expected}: {}", message(&error))
            }
            Ok(_) => panic!("{to} is accepted"),
        }
    }
    Ok(())
}

#[test]
fn sizes_that_the_files_do_not_have_are_refused() -> TestResult {
    let bench = Bench::new()?;
    for (from, to, expected) in [
        (
            "train_size = 40",
            "train_size = 41",
            "60 rows, expected 41 to train on and 20 to hold out",
        ),
        ("train_size = 40", "test_size = 25", "24 rows, 25 are wanted"),
        ("max_steps = 30", "max_steps = 30\nmax_length = 4", "has no label left"),
        ("train = \"train.tsv\"", "train = \"absent.tsv\"", "cannot read"),
    ] {
        match bench.load(bench.config(from, to)?) {
            Err(error) => {
                assert!(message(&error).contains(expected), "{expected}: {}", message(&error))
            }
            Ok(_) => panic!("{to} is accepted"),
        }
    }
    assert!(CONFIG.contains("validation_size = 20"));
    Ok(())
}

#[test]
fn rows_that_stand_in_the_test_set_are_counted() -> TestResult {
    let bench = Bench::new()?;
    let train = std::fs::read_to_string(bench.path("train.tsv"))?;
    let test = std::fs::read_to_string(bench.path("test.tsv"))?;
    let two: Vec<&str> = train.lines().take(2).collect();
    bench.write(
        "test.tsv",
        &format!("{test}{}\n{}\n", two[0].to_uppercase().to_lowercase(), two[1]),
    )?;
    let config = bench
        .config("train_size = 40\nvalidation_size = 20", "train_size = 59\nvalidation_size = 1")?;
    let leakage = bench.load(config)?.plan.data.leakage;
    assert_eq!(leakage.train_in_test + leakage.validation_in_test, 2);
    assert_eq!(leakage.places.len(), leakage.train_in_test);
    Ok(())
}
