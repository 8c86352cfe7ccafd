//! The trainer with every family of `tests/oracle/more_families`: frozen work once, and the backward block by block.

use reft_test_support::folders;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use reft_core::{InterventionConfig, Method};
use reft_methods::{ReftAdapter, ReftConfig};
use reft_models::{Adapter, AdapterStack, BaseModel, Decoder, Mode, Model, Row};
use reft_train::{
    Dataset, Example, FrozenStore, IGNORE_INDEX, Learner, NextToken, ReuseConfig, Shuffle,
    TrainConfig, Trainer,
};
use tch::{Device, Kind, Tensor};

use crate::tiny_llama::{TestResult, alone, learner, oracle_path, relative_difference};

fn families() -> Result<Vec<PathBuf>, Box<dyn std::error::Error>> {
    let root = oracle_path("more_families");
    let folders: Vec<_> = folders(&root)?.iter().map(|name| root.join(name)).collect();
    assert_eq!(folders.len(), 12);
    Ok(folders)
}

/// Rows of 11 to 23 tokens: some pass the original contexts, all pass the windows.
fn examples() -> Vec<Example> {
    let example = |i: i64| {
        let (length, prompt_length) = (11 + 4 * i, 6 + 3 * i as usize);
        let input_ids: Vec<i64> = (0..length).map(|t| 3 + (i * 31 + t * 17) % 57).collect();
        let mut labels = vec![IGNORE_INDEX; prompt_length];
        labels.extend(&input_ids[prompt_length..]);
        let row = Row { input_ids, prompt_length, ..Row::default() };
        Example::of(format!("row {i}"), row, labels)
    };
    (0..4).map(example).collect()
}

fn adapter(decoder: &Decoder) -> Result<ReftAdapter, Box<dyn std::error::Error>> {
    tch::manual_seed(3);
    let intervention = InterventionConfig {
        init: Some(reft_core::Init::Reference),
        ..InterventionConfig::new(Method::Loreft, 4)
    };
    let base = BaseModel::of(decoder.description(), "tiny");
    Ok(ReftAdapter::new(ReftConfig::new(&intervention, vec![1, 2], "l1".parse()?, base), decoder)?)
}

#[test]
fn frozen_work_gives_the_plain_loss_and_gradients() -> TestResult {
    let _alone = alone();
    for family in families()? {
        let decoder = Decoder::open(&family, Kind::Float, Device::Cpu)?;
        let adapter = adapter(&decoder)?;
        let batch = Learner::new(&decoder, &AdapterStack::EMPTY, &NextToken).batch(&examples())?;
        let run = |store: Option<&mut FrozenStore>| -> reft_train::Result<(f64, Vec<Tensor>)> {
            let parameters = adapter.parameters();
            parameters.iter().for_each(|p| p.tensor.shallow_clone().zero_grad());
            let loss = learner(&decoder, &adapter).sums(&batch, Mode::Train, store)?.remove(0);
            loss.backward();
            let gradients = parameters.iter().map(|p| p.tensor.grad().copy()).collect();
            Ok((loss.double_value(&[]), gradients))
        };
        let (plain, gradients) = run(None)?;
        let mut store = FrozenStore::new(ReuseConfig::default());
        for round in ["computed", "kept"] {
            let (loss, found) = run(Some(&mut store))?;
            let what = format!("{}, {round}", family.display());
            assert!((loss - plain).abs() < 1e-6 * plain, "{what}: {loss} {plain}"); // f32
            for (found, expected) in found.iter().zip(&gradients) {
                let off = relative_difference(found, expected);
                assert!(off < 2e-5, "{what}: gradients differ by {off:e}"); // f32
            }
        }
        assert_eq!(store.len(), 4);
    }
    Ok(())
}

#[derive(Default)]
pub struct Losses(pub Vec<f64>);

impl reft_train::Progress for Losses {
    fn step(&mut self, stats: &reft_train::StepStats) {
        self.0.push(stats.loss);
    }
}

#[test]
fn block_by_block_gives_the_plain_losses() -> TestResult {
    let _alone = alone();
    for family in families()? {
        let decoder = Decoder::open(&family, Kind::Float, Device::Cpu)?;
        let run = |checkpoint_activations| -> Result<Vec<f64>, Box<dyn std::error::Error>> {
            let adapter = adapter(&decoder)?;
            let dataset = Dataset { train: examples(), validation: Vec::new() };
            let config = TrainConfig {
                checkpoint_activations,
                max_steps: Some(4),
                batch_size: 2,
                lr: 4e-3,
                shuffle: Shuffle::Plain,
                seed: 5,
                ..TrainConfig::default()
            };
            let mut losses = Losses::default();
            let mut trainer = Trainer::new(&learner(&decoder, &adapter), &dataset, config)?;
            trainer.run(&mut losses, &AtomicBool::new(false))?;
            Ok(losses.0)
        };
        let (plain, by_block) = (run(false)?, run(true)?);
        assert_eq!(plain.len(), 4);
        assert!(plain[0] != plain[2], "{}: nothing is learned", family.display());
        for (plain, found) in plain.iter().zip(&by_block) {
            let off = (plain - found).abs() / plain;
            assert!(off < 1e-5, "{}: {plain} {found}", family.display()); // f32 over 4 steps of AdamW
        }
    }
    Ok(())
}
