//! Comparisons of methods that learn which of two replies was chosen.

use reft_bench::CompareConfig;
use reft_train::Metric;

use crate::run::compare;
use crate::tiny_model::{Bench, TestResult};

/// Pairs with a rule: the chosen reply repeats the last letter of the prompt.
fn pairs(from: usize, n: usize) -> String {
    let row = |i: usize| {
        let (letter, other) = if i.is_multiple_of(2) { ("y", "n") } else { ("n", "y") };
        let first = char::from(b'a' + (i * 7 % 20) as u8);
        format!(
            "{{\"prompt\": \"{first}{letter}:\", \"chosen\": \"{letter}\", \"rejected\": \"{other}\"}}\n"
        )
    };
    (from..from + n).map(row).collect()
}

fn bench() -> TestResult<Bench> {
    let bench = Bench::new()?;
    bench.write("task.toml", "type = \"preference\"\nlength = 1\n")?;
    bench.write("train.jsonl", &pairs(0, 60))?;
    bench.write("test.jsonl", &pairs(100, 24))?;
    Ok(bench)
}

fn config(bench: &Bench, objective: &str) -> TestResult<CompareConfig> {
    let asked = format!("seeds = [0]\n\n[objective]\n{objective}");
    let mut config = bench.config("seeds = [0, 1]\n", &asked)?;
    (config.data.train, config.data.test) = ("train.jsonl".into(), vec!["test.jsonl".into()]);
    config.method.iter_mut().for_each(|method| method.lr.truncate(1));
    Ok(config)
}

#[test]
fn methods_are_compared_by_the_pairs_that_they_tell() -> TestResult {
    let bench = bench()?;
    for objective in ["dpo", "ipo", "orpo", "simpo"] {
        let loaded = bench.load(config(&bench, &format!("objective = \"{objective}\"\n"))?)?;
        let (report, _) = compare(&loaded, &bench.path(objective), usize::MAX);
        let report = report?;
        assert!(report.complete && report.metric == Metric::Accuracy, "{objective}");
        let base = report.base.as_ref().ok_or("no base")?.score;
        for method in &report.methods {
            let score = method.score.as_ref().ok_or("no score")?;
            let (first, last) = (method.losses[0], method.losses[29]);
            assert!(last < 0.9 * first, "{objective} {}: {:?}", method.label, method.losses);
            let found = score.values[0];
            assert!(found > base + 0.1, "{objective} {}: {found} {base}", method.label);
        }
    }
    Ok(())
}

/// With `best` the held-out rows are scored after each epoch, and the adapter with the highest accuracy is measured.
#[test]
fn the_best_epoch_of_a_run_is_the_one_that_is_measured() -> TestResult {
    let bench = bench()?;
    let run = |name: &str, best: Option<Metric>| -> TestResult<Vec<f64>> {
        let mut config = config(&bench, "objective = \"simpo\"\n")?;
        config.train.options.best = best;
        config.method.iter_mut().for_each(|method| method.lr = vec![0.3]); // too high: the accuracy falls again
        let loaded = bench.load(config)?;
        let report = compare(&loaded, &bench.path(name), usize::MAX).0?;
        let validation = |method: &reft_bench::MethodReport| method.grid[0].validation;
        report.methods.iter().map(|method| validation(method).ok_or("none".into())).collect()
    };
    let (last, best) = (run("last", None)?, run("best", Some(Metric::Accuracy))?);
    for (last, best) in last.iter().zip(&best) {
        assert!(best >= last, "{best} {last}");
    }
    assert!(best != last, "no power: {last:?}");
    Ok(())
}

#[test]
fn what_does_not_fit_pairs_is_refused() -> TestResult {
    let bench = bench()?;
    let refused = |config: CompareConfig, words: &str| {
        let refused = bench.load(config).map(|_| ()).map_err(|error| error.to_string());
        assert!(refused.as_ref().is_err_and(|text| text.contains(words)), "{words}: {refused:?}");
    };
    let dpo = "objective = \"dpo\"\n";
    refused(config(&bench, "")?, "objective is next-token and the task of type preference");
    let mut full = config(&bench, dpo)?;
    full.method[1].method = "full".to_owned();
    full.method[1].options = Default::default();
    refused(full, "method full leaves none");
    let mut best = config(&bench, dpo)?;
    best.train.options.best = Some(Metric::Matthews);
    refused(best, "matthews beside objective dpo");
    let mut rows = config(&bench, dpo)?;
    rows.data.train = "train.tsv".into();
    refused(rows, "chosen");
    bench.write("task.toml", crate::tiny_model::TASK)?;
    refused(config(&bench, dpo)?, "objective is dpo and the task of type choice");
    Ok(())
}
