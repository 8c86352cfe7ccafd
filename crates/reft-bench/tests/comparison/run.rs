use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use reft_bench::{Cell, LoadedComparison, Report, run_cell, run_comparison};
use reft_methods::trained_text;
use reft_train::Silent;

use crate::tiny_model::{Bench, TestResult};

/// Random starts come from libtorch's generator, one per process: comparisons in two threads would take each other's numbers.
pub static GENERATOR: Mutex<()> = Mutex::new(());

/// Runs a comparison in this process; after `limit` cells it is interrupted. Returns the cells that were run.
pub fn compare(
    loaded: &LoadedComparison,
    output: &Path,
    limit: usize,
) -> (reft_bench::Result<Report>, Vec<Cell>) {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let mut cells = Vec::new();
    let mut run = |cell: &Cell| {
        if cells.len() == limit {
            return Err(reft_bench::Error::Interrupted);
        }
        cells.push(*cell);
        run_cell(loaded, cell, output, &mut Silent, &AtomicBool::new(false))
    };
    let report = run_comparison(loaded, output, &mut run, &mut |_| {}, &AtomicBool::new(false));
    (report, cells)
}

/// A report without measured times.
fn numbers(report: &Report) -> TestResult<String> {
    let mut report = report.clone();
    for method in &mut report.methods {
        method.train_seconds = None;
        method.tokens_per_second = None;
        method.generation_tokens_per_second = None;
        method.peak_memory_bytes = None;
    }
    report.base.as_mut().ok_or("no base")?.generation_tokens_per_second = None;
    Ok(serde_json::to_string(&report)?)
}

#[test]
fn a_comparison_survives_interruption_and_repeats_nothing() -> TestResult {
    let bench = Bench::new()?;
    let loaded = bench.load(bench.config("task", "task")?)?;
    let (whole, broken) = (bench.path("whole"), bench.path("broken"));

    let (report, cells) = compare(&loaded, &whole, usize::MAX);
    let report = report?;
    // the base model; per method two rates, the test of the chosen one, and the second seed
    assert_eq!(cells.len(), 1 + 2 * (2 + 1 + 1));
    assert!(report.complete);
    let (again, none) = compare(&loaded, &whole, 0);
    assert_eq!(none, []);
    assert_eq!(numbers(&again?)?, numbers(&report)?);

    let (interrupted, first) = compare(&loaded, &broken, 4);
    assert!(matches!(interrupted, Err(reft_bench::Error::Interrupted)));
    assert!(!Report::collect(&broken)?.complete);
    let (resumed, rest) = compare(&loaded, &broken, usize::MAX);
    assert_eq!([first, rest].concat(), cells);
    assert_eq!(numbers(&resumed?)?, numbers(&report)?);

    for method in &report.methods {
        let score = method.score.as_ref().ok_or("no score")?;
        assert_eq!(score.values.len(), 2);
        assert_eq!(method.losses.len(), 30);
        assert!(
            method.losses[29] < 0.5 * method.losses[0],
            "{}: {:?}",
            method.label,
            method.losses
        );
        assert!(method.forgetting.is_some() && method.adapter_bytes > 1000);
        let validations = method.grid.iter().map(|rate| rate.validation);
        let best = validations.flatten().fold(0.0, f64::max);
        let chosen = method.grid.iter().find(|rate| Some(rate.lr) == method.lr);
        assert_eq!(chosen.and_then(|rate| rate.validation), Some(best));
    }
    // rank 2: 4 layers of 2·64 + 2·64 + 2; 2·(in + out) of seven projections in 4 layers
    assert_eq!(report.methods[0].trainable_parameters, 4 * (2 * 64 + 2 * 64 + 2));
    assert_eq!(report.methods[1].trainable_parameters, 4 * 2 * (2 * 128 + 2 * 96 + 3 * 192));

    for file in ["report.json", "report.md", "report.html", "plan.json"] {
        assert!(whole.join(file).is_file(), "{file}");
    }
    let page = std::fs::read_to_string(whole.join("report.html"))?;
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "the page asks for {outside}");
    }
    Ok(())
}

#[test]
fn adapters_of_rates_that_were_not_chosen_are_removed() -> TestResult {
    let bench = Bench::new()?;
    let config = bench.config(
        "method = \"lora\"\nlr = [5e-3, 1e-2]\noptions = { rank = 2 }",
        "method = \"full\"\nlr = [1e-3, 2e-3]",
    )?;
    let loaded = bench.load(config)?;
    let output = bench.path("out");
    let report = compare(&loaded, &output, usize::MAX).0?;
    let has_adapter = |method, lr, seed| {
        let cell = Cell { method: Some(method), lr, seed, test: true };
        cell.directory(&loaded.plan, &output).join("adapter").exists()
    };
    let chosen = report.methods[0].lr.ok_or("no rate")?;
    let other = if chosen == 1e-2 { 5e-3 } else { 1e-2 };
    assert!(has_adapter(0, chosen, 0) && has_adapter(0, chosen, 1) && !has_adapter(0, other, 0));
    // the kept adapter records how its texts were framed
    let cell = Cell { method: Some(0), lr: chosen, seed: 0, test: true };
    let text = trained_text(&cell.directory(&loaded.plan, &output).join("adapter"))?;
    assert_eq!(text.map(|text| text.template), Some("plain".to_owned()));
    // fully fine-tuned weights are as large as the model
    assert!([1e-3, 2e-3].iter().all(|&lr| !has_adapter(1, lr, 0)));
    assert_eq!(report.methods[1].trainable_percent, 100.0);
    Ok(())
}

#[test]
fn a_cell_is_run_again_when_what_it_depends_on_changes() -> TestResult {
    let bench = Bench::new()?;
    let output = bench.path("out");
    let loaded = bench.load(bench.config("task", "task")?)?;
    compare(&loaded, &output, usize::MAX).0?;
    let changed = bench.load(bench.config("positions = \"f2+l2\"", "positions = \"l2\"")?)?;
    let (report, cells) = compare(&changed, &output, usize::MAX);
    report?;
    assert!(cells.iter().all(|cell| cell.method == Some(0)), "{cells:?}");
    assert_eq!(cells.len(), 4);
    Ok(())
}

#[test]
fn a_run_that_diverges_is_a_result() -> TestResult {
    let bench = Bench::new()?;
    let loaded = bench.load(bench.config("lr = [5e-3, 1e-2]", "lr = [1e30, 1e-2]")?)?;
    let report = compare(&loaded, &bench.path("out"), usize::MAX).0?;
    let lora = &report.methods[1];
    assert!(lora.grid[0].diverged.is_some(), "{:?}", lora.grid);
    assert_eq!((lora.lr, lora.diverged), (Some(1e-2), 0));
    assert!(report.complete);
    Ok(())
}
