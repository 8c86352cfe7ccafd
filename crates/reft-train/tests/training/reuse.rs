//! Frozen work that is done once gives the same numbers as without a cache.

use std::sync::atomic::AtomicBool;

use reft_core::{InterventionConfig, Method};
use reft_methods::{ReftAdapter, ReftConfig};
use reft_models::{Adapter, AdapterStack, BaseModel, Component, Decoder, Mode, Model};
use reft_train::{
    Batch, Dataset, FrozenStore, Learner, NextToken, ReuseConfig, Shuffle, Silent, TrainConfig,
    Trainer,
};
use tch::{Kind, Tensor};

use crate::tiny_llama::{TestResult, alone, decoder, examples, learner};

fn reft(
    decoder: &Decoder,
    method: Method,
    (layers, component): (&[usize], Component),
    positions: &str,
) -> Result<ReftAdapter, Box<dyn std::error::Error>> {
    tch::manual_seed(3);
    let intervention = InterventionConfig {
        init: Some(reft_core::Init::Reference),
        ..InterventionConfig::new(method, 4)
    };
    let base = BaseModel::of(decoder.description(), "tiny");
    let config = ReftConfig {
        component,
        share_weights: true,
        ..ReftConfig::new(&intervention, layers.to_vec(), positions.parse()?, base)
    };
    Ok(ReftAdapter::new(config, decoder)?)
}

/// Loss, and gradients of all parameters.
fn loss_and_gradients(
    decoder: &Decoder,
    adapter: &dyn Adapter,
    batch: &Batch,
    store: Option<&mut FrozenStore>,
) -> reft_train::Result<(f64, Vec<Tensor>)> {
    let parameters = adapter.parameters();
    for parameter in &parameters {
        parameter.tensor.shallow_clone().zero_grad();
    }
    let loss = learner(decoder, adapter).sums(batch, Mode::Train, store)?.remove(0);
    loss.backward();
    let gradients = parameters.iter().map(|parameter| parameter.tensor.grad().copy()).collect();
    Ok((loss.double_value(&[]), gradients))
}

/// The largest difference, as a share of the largest entry.
fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    let largest = expected.abs().max().double_value(&[]);
    (found - expected).abs().max().double_value(&[]) / largest
}

fn assert_same(found: &(f64, Vec<Tensor>), expected: &(f64, Vec<Tensor>), what: &str) {
    let loss = (found.0 - expected.0).abs() / expected.0;
    assert!(loss < 1e-6, "{what}: loss {} {}", found.0, expected.0); // f32, sums in another order
    for (found, expected) in found.1.iter().zip(&expected.1) {
        assert!(expected.abs().max().double_value(&[]) > 1e-3, "{what}: the test has no power");
        let difference = relative(found, expected);
        assert!(difference < 1e-5, "{what}: gradients differ by {difference:e}"); // f32; 2e-6 was seen
    }
}

#[test]
fn every_method_and_place_gives_the_plain_loss_and_gradients() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let batch = Learner::new(&decoder, &AdapterStack::EMPTY, &NextToken).batch(&examples(5))?;
    for &method in Method::ALL {
        for positions in ["l1", "l2", "f2+l2"] {
            for (layers, component) in [
                (&[0, 1, 2, 3][..], Component::BlockOutput),
                (&[2], Component::BlockInput),
                (&[1, 3], Component::AttentionOutput),
                (&[3], Component::BlockOutput),
                (&[0], Component::MlpOutput),
            ] {
                let adapter = reft(&decoder, method, (layers, component), positions)?;
                let what = format!("{method} {layers:?} {component} {positions}");
                let plain = loss_and_gradients(&decoder, &adapter, &batch, None)?;
                let mut store = FrozenStore::new(ReuseConfig::default());
                for round in ["computed", "kept"] {
                    let what = format!("{what}, {round}");
                    let reused = loss_and_gradients(&decoder, &adapter, &batch, Some(&mut store))?;
                    assert_same(&reused, &plain, &what);
                }
                let is_kept = positions.starts_with('l')
                    || layers[0] > 0
                    || component == Component::BlockOutput;
                assert_eq!(store.len(), if is_kept { 5 } else { 0 }, "{what}");
            }
        }
    }
    Ok(())
}

fn config(reuse: bool) -> TrainConfig {
    TrainConfig {
        reuse,
        max_steps: Some(50),
        batch_size: 3,
        lr: 4e-3,
        shuffle: Shuffle::Plain,
        seed: 5,
        ..TrainConfig::default()
    }
}

/// Losses of a run of 50 steps, and the adapter's tensors after it.
fn trajectory(
    decoder: &Decoder,
    config: TrainConfig,
    reuse: ReuseConfig,
) -> Result<(Vec<f64>, Vec<Tensor>), Box<dyn std::error::Error>> {
    let adapter = reft(decoder, Method::Loreft, (&[1, 2], Component::BlockOutput), "l2")?;
    let dataset = Dataset { train: examples(8), validation: examples(3) };
    let mut losses = Losses::default();
    let mut trainer = Trainer::new(&learner(decoder, &adapter), &dataset, config)?.keeping(reuse);
    trainer.run(&mut losses, &AtomicBool::new(false))?;
    let tensors = adapter.parameters().iter().map(|p| p.tensor.detach().copy()).collect();
    Ok((losses.0, tensors))
}

#[derive(Default)]
struct Losses(Vec<f64>);

impl reft_train::Progress for Losses {
    fn step(&mut self, stats: &reft_train::StepStats) {
        self.0.push(stats.loss);
    }

    fn validated(&mut self, stats: &reft_train::ValidationStats) {
        self.0.push(stats.validation_loss);
    }
}

#[test]
fn fifty_steps_follow_the_plain_path() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let (plain, _) = trajectory(&decoder, config(false), ReuseConfig::default())?;
    let (reused, _) = trajectory(&decoder, config(true), ReuseConfig::default())?;
    assert!(plain.len() > 50 && plain[plain.len() - 1] < 0.8 * plain[0], "{plain:?}");
    for (step, (plain, reused)) in plain.iter().zip(&reused).enumerate() {
        let difference = (plain - reused).abs() / plain;
        assert!(difference < 1e-4, "value {step}: {plain} {reused}"); // f32 over 50 steps of AdamW
    }
    Ok(())
}

#[test]
fn kept_in_memory_or_in_a_file_the_numbers_are_the_same_bits() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let directory = tempfile::tempdir()?;
    let (losses, tensors) = trajectory(&decoder, config(true), ReuseConfig::default())?;
    for memory in [0, 3000] {
        // 3000 bytes: some of the rows fit
        let reuse = ReuseConfig {
            memory: Some(memory),
            directory: Some(directory.path().to_owned()),
            processes: 1,
        };
        let (found, found_tensors) = trajectory(&decoder, config(true), reuse)?;
        assert_eq!(found, losses, "{memory}");
        assert_eq!(found_tensors, tensors, "{memory}");
    }
    Ok(())
}

/// Without room for all rows, each row is computed alone, whichever of them are cached; sums are in another order.
#[test]
fn without_room_the_numbers_are_the_same_to_rounding_however_little_there_is() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let (kept, _) = trajectory(&decoder, config(true), ReuseConfig::default())?;
    let small = |memory| ReuseConfig { memory: Some(memory), ..ReuseConfig::default() };
    let (losses, tensors) = trajectory(&decoder, config(true), small(0))?;
    let (some, some_tensors) = trajectory(&decoder, config(true), small(3000))?;
    assert_eq!((some, some_tensors), (losses.clone(), tensors));
    // a directory that cannot be made is a warning
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("no directory");
    std::fs::write(&file, "")?;
    let no_directory = ReuseConfig { memory: Some(0), directory: Some(file), processes: 1 };
    let (warned, _) = trajectory(&decoder, config(true), no_directory)?;
    for found in [&losses, &warned] {
        for (step, (found, kept)) in found.iter().zip(&kept).enumerate() {
            let difference = (found - kept).abs() / kept;
            assert!(difference < 1e-4, "value {step}: {found} {kept}"); // f32 over 50 steps of AdamW
        }
    }
    Ok(())
}

#[test]
fn a_run_that_goes_on_with_an_empty_store_goes_on_bit_for_bit() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let dataset = Dataset { train: examples(8), validation: Vec::new() };
    let config = TrainConfig { max_steps: Some(20), checkpoint_every: 7, ..config(true) };
    let new = || reft(&decoder, Method::Loreft, (&[1, 2], Component::BlockOutput), "l2");
    let directory = tempfile::tempdir()?;
    let (whole, broken) = (directory.path().join("whole"), directory.path().join("broken"));

    let adapter = new()?;
    let trainer = Trainer::new(&learner(&decoder, &adapter), &dataset, config.clone())?;
    trainer.starting_in(&whole)?.run(&mut Silent, &AtomicBool::new(false))?;

    // stopped after step 9, which is within an epoch of 3 steps, long after every row was kept
    let (adapter, stop) = (new()?, AtomicBool::new(false));
    let trainer = Trainer::new(&learner(&decoder, &adapter), &dataset, config.clone())?;
    trainer.starting_in(&broken)?.run(&mut StopAt(9, &stop), &stop)?;
    let adapter = new()?;
    let trainer = Trainer::new(&learner(&decoder, &adapter), &dataset, config)?;
    trainer.resuming_in(&broken)?.run(&mut Silent, &AtomicBool::new(false))?;

    let file = |run: &std::path::Path| std::fs::read(run.join(ReftAdapter::FILE_NAME));
    assert_eq!(file(&broken)?, file(&whole)?);
    Ok(())
}

struct StopAt<'a>(usize, &'a AtomicBool);

impl reft_train::Progress for StopAt<'_> {
    fn step(&mut self, stats: &reft_train::StepStats) {
        self.1.store(stats.step == self.0, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn evaluation_takes_what_is_kept() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let rows = examples(7);
    let adapter = reft(&decoder, Method::Loreft, (&[0, 2], Component::BlockOutput), "l1")?;
    let plain = learner(&decoder, &adapter).evaluate(&rows, 3, None)?.loss;
    let mut store = FrozenStore::new(ReuseConfig::default());
    for _ in 0..2 {
        let kept = learner(&decoder, &adapter).evaluate(&rows, 3, Some(&mut store))?.loss;
        assert!((kept - plain).abs() < 1e-6 * plain, "{kept} {plain}");
    }
    assert_eq!(store.len(), 7);
    let base =
        Learner::new(&decoder, &AdapterStack::EMPTY, &NextToken).evaluate(&rows, 3, None)?.loss;
    assert!((base - plain).abs() > 1e-3, "no edit, no test");
    Ok(())
}
