//! A comparison that version 1 of its files began: ReFT methods share weights unless they say otherwise.

use std::path::{Path, PathBuf};

use reft_bench::{Cell, CellResult, ComparisonPlan};
use reft_methods::SHARE_WEIGHTS;
use serde_json::{Value, json};

use crate::run::compare;
use crate::tiny_model::{Bench, TestResult};

/// Rank 2 in four layers of hidden size 64: `2·64 + 2·64 + 2` per intervention.
const SHARED: i64 = 4 * (4 * 64 + 2);

fn version_of(output: &Path) -> TestResult<Value> {
    let plan = std::fs::read_to_string(output.join(ComparisonPlan::FILE_NAME))?;
    Ok(serde_json::from_str::<Value>(&plan)?["format_version"].clone())
}

#[test]
fn a_comparison_goes_on_as_it_was_begun_whether_shared_weights_are_asked_for_or_not() -> TestResult
{
    let bench = Bench::new()?;
    let output = bench.path("out");
    let [silent, spelt, untied] = ["", ", share_weights = true", ", share_weights = false"];
    let loaded = |asked: &str| bench.load(bench.config(spelt, asked)?);
    let parameters = |asked: &str| -> TestResult<_> {
        let (report, cells) = compare(&loaded(asked)?, &output, usize::MAX);
        Ok((report?.methods[0].trainable_parameters, cells.len()))
    };
    std::fs::create_dir(&output)?;
    std::fs::write(output.join(ComparisonPlan::FILE_NAME), r#"{"format_version": 1}"#)?;
    assert_eq!(parameters(silent)?, (SHARED, 9));
    assert_eq!(version_of(&output)?, 1);
    assert_eq!(parameters(spelt)?, (SHARED, 0), "shared weights are computed again");
    assert_eq!(parameters(silent)?, (SHARED, 0));
    assert_eq!(parameters(untied)?, (2 * SHARED, 4));
    assert_eq!(version_of(&output)?, 1);

    std::fs::remove_dir_all(&output)?;
    assert_eq!(parameters(silent)?, (2 * SHARED, 9));
    assert_eq!(version_of(&output)?, 3);
    assert_eq!(parameters(spelt)?, (SHARED, 4), "untied weights are taken for shared ones");
    Ok(())
}

/// The finished comparison of `tests/written_by_0_1`.
fn written() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/written_by_0_1/comparison/done")
}

/// How many of the plan's cells are found: of each method both rates, and the second seed of the chosen one.
fn found(plan: &ComparisonPlan) -> TestResult<Vec<usize>> {
    let mut found = vec![usize::from(Cell::BASE.result(plan, &written())?.is_some())];
    for method in 0..plan.config.method.len() {
        let rates = plan.tuning(method).into_iter();
        let chosen = [1e-2, 5e-2].into_iter().flat_map(|lr| plan.chosen(method, lr).split_off(1));
        let results = rates.chain(chosen).map(|cell| cell.result(plan, &written()));
        let results: Vec<Option<CellResult>> = results.collect::<reft_bench::Result<_>>()?;
        found.push(results.iter().flatten().count());
    }
    Ok(found)
}

#[test]
fn cells_of_version_0_1_are_known_by_their_identities() -> TestResult {
    let mut plan = ComparisonPlan::read(&written())?;
    assert_eq!((plan.format_version, found(&plan)?), (1, vec![1, 3, 3, 3]));
    let silent = plan.config.method[0].options.clone();
    plan.config.method[0].options = silent.clone().with(&SHARE_WEIGHTS, true);
    assert_eq!(found(&plan)?, [1, 3, 3, 3]);
    plan.config.method[0].options = silent.with(&SHARE_WEIGHTS, false);
    assert_eq!(found(&plan)?, [1, 0, 3, 3]);
    plan.format_version = ComparisonPlan::FORMAT_VERSION;
    assert_eq!(found(&plan)?, [0, 0, 0, 0]);
    Ok(())
}

#[test]
fn a_plan_is_written_as_version_0_1_wrote_it() -> TestResult {
    let text = std::fs::read_to_string(written().join(ComparisonPlan::FILE_NAME))?;
    let plan = ComparisonPlan::read(&written())?;
    assert_eq!(serde_json::to_string_pretty(&plan)? + "\n", text);
    let train = json!({ "max_steps": 8, "batch_size": 5, "warmup_ratio": 0.2, "shuffle": "plain" });
    assert_eq!(serde_json::from_value::<reft_bench::Budget>(train)?, plan.config.train);
    Ok(())
}

#[test]
fn files_of_a_later_version_are_refused() -> TestResult {
    let bench = Bench::new()?;
    std::fs::create_dir(bench.path("out"))?;
    bench.write("out/plan.json", r#"{"format_version": 4}"#)?;
    let refused = bench.load(bench.config("task", "task")?).map(drop);
    assert!(refused.is_err_and(|error| error.to_string().contains("this program reads 1 to 3")));
    Ok(())
}
