//! A run that is killed or interrupted and resumed gives the same numbers as one that is not.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use reft_core::MapKind;
use reft_methods::ReftAdapter;
use reft_models::{Decoder, load_safetensors};
use reft_train::{
    Dataset, Error, FrozenStore, Outcome, Progress, ReuseConfig, Shuffle, Silent, StepStats,
    TrainConfig, Trainer, ValidationStats,
};
use tch::Kind;

use crate::tiny_llama::{TestResult, adapter, alone, decoder, examples, learner};

/// Five steps an epoch, the last one with a single example.
fn options() -> TrainConfig {
    TrainConfig {
        epochs: Some(3),
        batch_size: 2,
        grad_accum: 2,
        lr: 1e-2,
        warmup_ratio: 0.2,
        weight_decay: 0.01,
        validation: 3.0,
        eval_every: 4,
        checkpoint_every: 3,
        seed: 7,
        ..TrainConfig::default()
    }
}

const DROPOUT: f64 = 0.2;

fn dataset() -> reft_train::Result<Dataset> {
    Dataset::split(examples(20), options().validation, options().seed)
}

/// Copies a run's directory after some steps, as a kill at that moment would leave it.
struct Kills {
    run: PathBuf,
    copies: PathBuf,
    stop_at: Option<usize>,
    stop: AtomicBool,
}

impl Progress for &Kills {
    fn step(&mut self, stats: &StepStats) {
        copy_tree(&self.run, &self.copies.join(stats.step.to_string())).expect("copied");
        if Some(stats.step) == self.stop_at {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The reproducible part of `metrics.jsonl`: everything but wall times and the process's memory.
fn metrics(run: &Path) -> Result<Vec<serde_json::Value>, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl"))?;
    let mut rows = Vec::new();
    for line in text.lines() {
        let mut row: serde_json::Value = serde_json::from_str(line)?;
        let fields = row.as_object_mut().ok_or("a row is an object")?;
        fields.remove("seconds").ok_or("seconds")?;
        fields.remove("memory");
        rows.push(row);
    }
    Ok(rows)
}

fn assert_same_run(found: &Path, expected: &Path) -> TestResult {
    for (found, expected) in metrics(found)?.iter().zip(&metrics(expected)?) {
        assert_eq!(found, expected);
    }
    assert_eq!(metrics(found)?.len(), metrics(expected)?.len());
    let tensors = |run: &Path| load_safetensors(&run.join(ReftAdapter::FILE_NAME));
    assert_eq!(tensors(found)?, tensors(expected)?);
    Ok(())
}

fn resume(decoder: &Decoder, map: MapKind, run: &Path) -> reft_train::Result<Outcome> {
    // Another seed: everything must come from the checkpoint.
    let adapter = adapter(decoder, map, DROPOUT, 999)?;
    let dataset = dataset()?;
    let mut trainer =
        Trainer::new(&learner(decoder, &adapter), &dataset, options())?.resuming_in(run)?;
    trainer.run(&mut Silent, &AtomicBool::new(false))
}

#[test]
fn a_run_killed_after_any_step_goes_on_bit_for_bit() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    for map in [MapKind::Householder, MapKind::Qr] {
        let directory = tempfile::tempdir()?;
        let (run, copies) = (directory.path().join("run"), directory.path().join("copies"));
        let kills = Kills { run: run.clone(), copies, stop_at: None, stop: AtomicBool::new(false) };
        let first = adapter(&decoder, map, DROPOUT, 1)?;
        let dataset = dataset()?;
        let mut trainer =
            Trainer::new(&learner(&decoder, &first), &dataset, options())?.starting_in(&run)?;
        assert_eq!((trainer.steps_per_epoch(), trainer.total_steps()), (5, 15));
        let outcome = trainer.run(&mut &kills, &kills.stop)?;
        let Outcome::Finished(summary) = outcome else { panic!("{outcome:?}") };
        assert_eq!(summary.steps, 15);
        assert!(summary.best.is_some());
        let rows = metrics(&run)?;
        // 15 steps; validations at the start, every 4 steps, and at the end
        assert_eq!(rows.len(), 15 + 5);
        let losses: Vec<f64> = rows.iter().filter_map(|row| row["loss"].as_f64()).collect();
        assert!(losses.windows(2).all(|w| w[0] != w[1]), "the test has no power: {losses:?}");

        // Before and after checkpoints (every 3 steps), validations (4) and the ends of epochs (5).
        for step in [4, 5, 7, 9, 10, 12, 14, 15] {
            let copy = kills.copies.join(step.to_string());
            let resumed = resume(&decoder, map, &copy)?;
            assert_same_run(&copy, &run).map_err(|error| format!("{map}, step {step}: {error}"))?;
            assert_eq!(resumed, outcome, "{map}, killed after step {step}");
        }
    }
    Ok(())
}

#[test]
fn a_run_killed_before_its_first_checkpoint_begins_anew() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let directory = tempfile::tempdir()?;
    let (run, copies) = (directory.path().join("run"), directory.path().join("copies"));
    let kills = Kills { run: run.clone(), copies, stop_at: None, stop: AtomicBool::new(false) };
    let dataset = dataset()?;
    let first = adapter(&decoder, MapKind::Householder, DROPOUT, 1)?;
    let mut trainer =
        Trainer::new(&learner(&decoder, &first), &dataset, options())?.starting_in(&run)?;
    trainer.run(&mut &kills, &kills.stop)?;

    let copy = kills.copies.join("2");
    let again = adapter(&decoder, MapKind::Householder, DROPOUT, 1)?;
    let mut trainer =
        Trainer::new(&learner(&decoder, &again), &dataset, options())?.resuming_in(&copy)?;
    assert_eq!(trainer.plan().done, 0);
    trainer.run(&mut Silent, &AtomicBool::new(false))?;
    assert_same_run(&copy, &run)
}

#[test]
fn an_interrupted_run_saves_a_checkpoint_and_goes_on_bit_for_bit() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let directory = tempfile::tempdir()?;
    let dataset = dataset()?;
    let whole = directory.path().join("whole");
    let first = adapter(&decoder, MapKind::Householder, DROPOUT, 1)?;
    let mut trainer =
        Trainer::new(&learner(&decoder, &first), &dataset, options())?.starting_in(&whole)?;
    trainer.run(&mut Silent, &AtomicBool::new(false))?;

    let (run, copies) = (directory.path().join("run"), directory.path().join("copies"));
    let kills = Kills { run: run.clone(), copies, stop_at: Some(8), stop: AtomicBool::new(false) };
    let second = adapter(&decoder, MapKind::Householder, DROPOUT, 1)?;
    let mut trainer =
        Trainer::new(&learner(&decoder, &second), &dataset, options())?.starting_in(&run)?;
    let outcome = trainer.run(&mut &kills, &kills.stop)?;
    assert!(matches!(outcome, Outcome::Interrupted(summary) if summary.steps == 8), "{outcome:?}");
    assert!(run.join("checkpoint/step-00000008").is_dir());
    assert!(!run.join(ReftAdapter::FILE_NAME).exists()); // an unfinished run leaves no adapter yet
    resume(&decoder, MapKind::Householder, &run)?;
    assert_same_run(&run, &whole)
}

#[test]
fn a_run_is_resumed_only_as_it_was_started() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let directory = tempfile::tempdir()?;
    let run = directory.path().join("run");
    let dataset = dataset()?;
    let first = adapter(&decoder, MapKind::Householder, 0.0, 1)?;
    let mut trainer =
        Trainer::new(&learner(&decoder, &first), &dataset, options())?.starting_in(&run)?;
    trainer.run(&mut Silent, &AtomicBool::new(false))?;
    let before = metrics(&run)?;

    let attempt = |options: TrainConfig, dataset: &Dataset, facts: serde_json::Value| {
        let facts = facts.as_object().cloned().unwrap_or_default();
        let trainer = Trainer::new(&learner(&decoder, &first), dataset, options)?.with_facts(facts);
        match trainer.resuming_in(&run) {
            Err(Error::ResumeMismatch { field, .. }) => Ok(Some(field)),
            Err(other) => Err(other),
            Ok(_) => Ok(None),
        }
    };
    let nothing = serde_json::Value::Null;
    let other_lr = TrainConfig { lr: 2e-2, ..options() };
    assert_eq!(attempt(other_lr, &dataset, nothing.clone())?.as_deref(), Some("lr"));
    let other_order = TrainConfig { shuffle: Shuffle::Plain, ..options() };
    assert_eq!(attempt(other_order, &dataset, nothing.clone())?.as_deref(), Some("shuffle"));
    let other_data = Dataset { train: examples(9), ..dataset.clone() };
    assert_eq!(attempt(options(), &other_data, nothing.clone())?.as_deref(), Some("data"));
    let facts = serde_json::json!({"positions": "l1"});
    assert_eq!(attempt(options(), &dataset, facts)?.as_deref(), Some("positions"));
    let more_checkpoints = TrainConfig { checkpoint_every: 1, ..options() };
    assert_eq!(attempt(more_checkpoints, &dataset, nothing)?, None);
    assert_eq!(metrics(&run)?, before); // a refusal changes nothing

    let second = adapter(&decoder, MapKind::Householder, 0.0, 1)?;
    let fresh = Trainer::new(&learner(&decoder, &second), &dataset, options())?.starting_in(&run);
    assert!(matches!(fresh, Err(Error::RunExists { found: "checkpoint", .. })));
    assert_eq!(metrics(&run)?, before);
    Ok(())
}

/// Remembers validations, and the adapter that each saw.
#[derive(Default)]
struct Validations(Vec<ValidationStats>);

impl Progress for Validations {
    fn validated(&mut self, stats: &ValidationStats) {
        self.0.push(stats.clone());
    }
}

#[test]
fn the_adapter_with_the_lowest_validation_loss_is_kept() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let dataset = dataset()?;
    let adapter = adapter(&decoder, MapKind::Householder, 0.0, 1)?;
    // So fast that it overfits: the last validation is not the best.
    let options = TrainConfig { lr: 5e-2, epochs: Some(12), eval_every: 5, ..options() };
    let mut validations = Validations::default();
    let outcome = Trainer::new(&learner(&decoder, &adapter), &dataset, options)?
        .run(&mut validations, &AtomicBool::new(false))?;
    let Outcome::Finished(summary) = outcome else { panic!("{outcome:?}") };
    let best = summary.best.ok_or("no best")?;
    let losses: Vec<f64> = validations.0.iter().map(|stats| stats.validation_loss).collect();
    let lowest = losses[1..].iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(best.validation_loss, lowest, "{losses:?}");
    assert!(losses.last().is_some_and(|last| *last > lowest + 0.01), "no power: {losses:?}");
    let mut store = FrozenStore::new(ReuseConfig::default()); // as the trainer does
    let kept = learner(&decoder, &adapter).evaluate(&dataset.validation, 2, Some(&mut store))?;
    assert_eq!(kept.loss, lowest);
    Ok(())
}
