use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;

use reft_bench::{
    Cell, Comparison, ConfigFile, LoadedComparison, LoadedSweep, SweepReport, TaskConfig, run_cell,
    run_sweep,
};
use reft_models::DecoderConfig;
use reft_train::Silent;
use tch::Device;

use crate::run::GENERATOR;
use crate::tiny_model::{Bench, TestResult};

const CONFIG: &str = r#"name = "by heart"
task = "memorise.toml"
seeds = [0]

[data]
train = "text.txt"
validation = "text.txt"
test = ["text.txt"]
validation_size = 1

[train]
max_steps = 120
schedule = "constant"
stop_at_loss = 0.1

[sweep.x]
key = "task.length"
name = "tokens"
values = [1, 6]

[sweep.y]
key = "options.layers"
name = "layer"
values = [[0], [2]]

[[method]]
method = "loreft"
lr = [1e-1]
options = { rank = 4, positions = "l1" }
"#;

fn loaded(bench: &Bench, config: &str) -> TestResult<LoadedSweep> {
    bench.write("text.txt", "a fox jumps over")?;
    bench.write("memorise.toml", "type = \"memorise\"\nprompt = \"go:\"\ntemplate = \"plain\"")?;
    let file = ConfigFile::parse(config.to_owned(), &bench.path("compare.toml"))?;
    let mut config = file.config.clone();
    config.model = bench.path("model").to_string_lossy().into_owned();
    config.data.directory = Some(bench.path(""));
    let task = TaskConfig::open(&bench.path("memorise.toml"))?;
    let comparison = Comparison { config, task, train_task: None };
    let model = DecoderConfig::open(&bench.path("model"))?.describe();
    let points = file.points(&comparison, &model)?;
    let output = bench.path("out");
    Ok(LoadedSweep::new(comparison.config, points, "reft compare", &output, Device::Cpu)?)
}

/// Runs a sweep in this process; after `limit` cells it is interrupted. Returns the cells that were run, each with its point.
fn run(
    loaded: &LoadedSweep,
    output: &Path,
    limit: usize,
) -> (reft_bench::Result<SweepReport>, Vec<String>) {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let mut cells = Vec::new();
    let mut run = |directory: &Path, cell: &Cell| {
        if cells.len() == limit {
            return Err(reft_bench::Error::Interrupted);
        }
        let point = LoadedComparison::from_plan(directory, Device::Cpu)?;
        let place = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        cells.push(format!("{place}/{}", cell.name(&point.plan)));
        run_cell(&point, cell, directory, &mut Silent, &AtomicBool::new(false))
    };
    let report = run_sweep(loaded, output, &mut run, &mut |_| {}, &AtomicBool::new(false));
    (report, cells)
}

fn scores(report: &SweepReport) -> Vec<Option<f64>> {
    let score =
        |point: &reft_bench::PointReport| Some(point.report.methods[0].score.as_ref()?.mean);
    report.points.iter().map(score).collect()
}

#[test]
fn every_point_is_run_once_and_an_interrupted_sweep_goes_on() -> TestResult {
    let bench = Bench::new()?;
    let loaded = loaded(&bench, CONFIG)?;
    let (whole, broken) = (bench.path("whole"), bench.path("broken"));
    let (report, cells) = run(&loaded, &whole, usize::MAX);
    let report = report?;
    // the base model does not depend on the layer; of one rate and one seed there is the run and its test
    let place = |layer: usize, tokens: usize| format!("layer-{layer}-tokens-{tokens}");
    let base = |tokens| format!("{}/base", place(0, tokens));
    let method = |layer, tokens| format!("{}/loreft/lr-0.1/seed-0", place(layer, tokens));
    let twice = |layer, tokens| [method(layer, tokens), method(layer, tokens)];
    let expected = [
        &[base(1)],
        &twice(0, 1)[..],
        &[base(6)],
        &twice(0, 6)[..],
        &twice(2, 1)[..],
        &twice(2, 6)[..],
    ]
    .concat();
    assert_eq!(cells, expected);
    assert!(report.complete);

    let (interrupted, first) = run(&loaded, &broken, 4);
    assert!(matches!(interrupted, Err(reft_bench::Error::Interrupted)));
    assert!(!SweepReport::collect(&broken)?.complete);
    let (resumed, rest) = run(&loaded, &broken, usize::MAX);
    assert_eq!([first, rest].concat(), expected);
    assert_eq!(scores(&resumed?), scores(&report));
    Ok(())
}

#[test]
fn a_short_text_is_learned_by_heart_and_the_report_shows_where() -> TestResult {
    let bench = Bench::new()?;
    let output = bench.path("out");
    let report = run(&loaded(&bench, CONFIG)?, &output, usize::MAX).0?;
    assert_eq!(scores(&report)[2], Some(1.0)); // layer 2, one token
    let steps: Vec<usize> =
        report.points.iter().map(|p| p.report.methods[0].losses.len()).collect();
    let last = |i: usize| report.points[i].report.methods[0].losses.last().copied();
    for (i, &n) in steps.iter().enumerate() {
        assert!(n == 120 || last(i).is_some_and(|loss| loss <= 0.1), "{n} steps to {:?}", last(i));
    }
    assert!(steps[2] < 120, "training goes on when the text is known: {steps:?}");
    assert_eq!(report.points[2].report.base.as_ref().map(|base| base.score), Some(0.0));
    // rank 4 at one layer: 4·(2·64 + 1)
    assert_eq!(report.points[0].report.methods[0].trainable_parameters, 4 * (2 * 64 + 1));

    let markdown = std::fs::read_to_string(output.join("report.md"))?;
    assert!(markdown.contains("| layer \\ tokens | 1 | 6 |"), "{markdown}");
    assert!(markdown.contains("| 2 | 100.0 % |"), "{markdown}");
    assert!(markdown.contains("the score measures memory"), "{markdown}");
    let page = std::fs::read_to_string(output.join("report.html"))?;
    assert_eq!(page.matches("<figure>").count(), 2); // the method and the base model
    assert!(page.contains("layer 2, tokens 1: 100.0 %"));
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "the page asks for {outside}");
    }
    let json = std::fs::read(output.join("report.json"))?;
    // both sides are read from text: a number that is read may differ in its last bit from the number that was written
    let same = serde_json::from_str::<SweepReport>(&serde_json::to_string(&report)?)?;
    assert_eq!(serde_json::from_slice::<SweepReport>(&json)?, same);
    Ok(())
}

#[test]
fn numbers_of_another_configuration_are_in_no_report() -> TestResult {
    let bench = Bench::new()?;
    let output = bench.path("out");
    run(&loaded(&bench, CONFIG)?, &output, usize::MAX).0?;
    let changed = loaded(&bench, &CONFIG.replace("max_steps = 120", "max_steps = 2"))?;
    let (interrupted, _) = run(&changed, &output, 3);
    assert!(matches!(interrupted, Err(reft_bench::Error::Interrupted)));
    let known = scores(&SweepReport::collect(&output)?);
    assert_eq!(known.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false, false]);
    Ok(())
}

#[test]
fn a_text_shorter_than_a_length_is_refused_before_any_training() -> TestResult {
    let bench = Bench::new()?;
    let message = match loaded(&bench, &CONFIG.replace("[1, 6]", "[1, 60]")) {
        Err(error) => error.to_string(),
        Ok(_) => return Err("60 tokens are accepted".into()),
    };
    assert!(message.contains("17 tokens with its end token, length is 60"), "{message}");
    Ok(())
}
