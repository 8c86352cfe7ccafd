//! Comparisons of methods that train a head.

use reft_bench::CompareConfig;
use reft_train::Metric;

use crate::run::compare;
use crate::tiny_model::{Bench, TestResult};

const TASK: &str =
    "type = \"classification\"\ncolumns = [\"text\", \"label\"]\nmetric = \"matthews\"\n";

const METHODS: &str = "method = \"head\"
lr = [5e-3, 1e-2]

[[method]]
method = \"full\"
lr = [1e-3, 2e-3]

[[method]]
method = \"lora\"
lr = [5e-3, 1e-2]
options = { rank = 2 }
";

fn config(bench: &Bench) -> TestResult<CompareConfig> {
    let lora = "method = \"lora\"\nlr = [5e-3, 1e-2]\noptions = { rank = 2 }\n";
    Ok(bench.config(lora, METHODS)?)
}

#[test]
fn methods_are_compared_by_their_heads() -> TestResult {
    let bench = Bench::new()?;
    bench.write("task.toml", TASK)?;
    let mut config = config(&bench)?;
    (config.data.validation, config.data.validation_size) = (Some("test.tsv".into()), 24);
    let loaded = bench.load(config)?;
    let output = bench.path("out");
    let (interrupted, first) = compare(&loaded, &output, 6);
    assert!(interrupted.is_err());
    let (report, rest) = compare(&loaded, &output, usize::MAX);
    let report = report?;
    assert!(report.complete);
    assert_eq!(first.len() + rest.len(), 1 + 4 * (2 + 1 + 1));
    assert_eq!(report.methods[1].trainable_parameters, 0); // its head is not counted
    for method in &report.methods {
        let score = method.score.as_ref().ok_or("no score")?;
        assert_eq!(score.values.len(), 2, "{}", method.label);
        // the tested adapter and its head were read back from their files; the test rows are the validation rows
        let chosen = method.grid.iter().find(|rate| Some(rate.lr) == method.lr);
        assert_eq!(
            chosen.and_then(|rate| rate.validation),
            Some(score.values[0]),
            "{}",
            method.label
        );
        assert!(method.adapter_bytes > 0 && method.losses.len() == 30);
        let learns = method.losses[29] < 0.8 * method.losses[0];
        assert!(learns || method.label == "head", "{}: {:?}", method.label, method.losses);
    }
    let best = report.methods.iter().filter_map(|method| method.score.as_ref());
    assert!(best.map(|score| score.mean).fold(0.0, f64::max) > 0.9);
    assert_eq!(report.metric, Metric::Matthews);
    Ok(())
}

#[test]
fn tasks_of_heads_take_what_heads_have() -> TestResult {
    let bench = Bench::new()?;
    for (task, words) in [
        ("type = \"classification\"\nmetric = \"pearson\"", "use accuracy, f1, matthews"),
        ("type = \"classification\"\nprompt = \"{text}\"", "has no prompt"),
        ("type = \"classification\"\nscoring = \"next_token\"", "has no scoring"),
        ("type = \"regression\"\ncolumns = [\"text\", \"label\"]\nmetric = \"spearman\"", ""),
    ] {
        bench.write("task.toml", task)?;
        let loaded = bench.load(config(&bench)?).map_err(|error| format!("{error:?}"));
        assert!(loaded.as_ref().err().is_none_or(|error| error.contains(words)), "{loaded:?}");
        assert_eq!(loaded.is_ok(), words.is_empty(), "{task}");
    }
    Ok(())
}
