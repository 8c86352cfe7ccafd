//! Training on encoders by an objective with a head of its own: frozen work by stages, and the backward block by block.

use reft_test_support::folders;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use reft_core::{Init, InterventionConfig, Method};
use reft_methods::{ReftAdapter, ReftConfig};
use reft_models::{AdapterStack, BaseModel, Decoder, Mode, Model, Row};
use reft_train::{
    Dataset, Error, Example, FrozenStore, IGNORE_INDEX, Learner, NextToken, ReuseConfig, Shuffle,
    TrainConfig, Trainer,
};
use tch::{Device, Kind, Tensor};

use crate::families::Losses;
use crate::objectives::LastToken;
use crate::tiny_llama::{TestResult, alone, oracle_path, relative_difference};

fn encoders() -> Result<Vec<PathBuf>, Box<dyn std::error::Error>> {
    let root = oracle_path("encoders");
    let folders: Vec<_> = folders(&root)?.iter().map(|name| root.join(name)).collect();
    assert!(folders.len() >= 7);
    Ok(folders)
}

/// Texts of 9 to 21 tokens of three classes, without labels.
fn examples() -> Vec<Example> {
    let example = |i: i64| {
        let input_ids: Vec<i64> = (0..9 + 2 * i).map(|t| 6 + (i * 31 + t * 17) % 54).collect();
        let labels = vec![IGNORE_INDEX; input_ids.len()];
        let of = Example::of(format!("text {i}"), Row::prompt(input_ids), labels);
        Example { value: Some((i % 3) as f64), ..of }
    };
    (0..7).map(example).collect()
}

fn adapter(model: &Decoder) -> Result<ReftAdapter, Box<dyn std::error::Error>> {
    tch::manual_seed(3);
    let intervention = InterventionConfig {
        init: Some(Init::Reference),
        ..InterventionConfig::new(Method::Loreft, 4)
    };
    let base = BaseModel::of(model.description(), "tiny");
    Ok(ReftAdapter::new(ReftConfig::new(&intervention, vec![1, 2], "f3".parse()?, base), model)?)
}

#[test]
fn frozen_work_is_whole_rows_below_the_first_edit() -> TestResult {
    let _alone = alone();
    for folder in encoders()? {
        let model = Decoder::open(&folder, Kind::Float, Device::Cpu)?;
        let adapter = adapter(&model)?;
        let objective = LastToken::new(32);
        let learner = Learner::new(&model, &AdapterStack::one(&adapter), &objective);
        let batch = learner.batch(&examples())?;
        let run = |store: Option<&mut FrozenStore>| -> reft_train::Result<(f64, Vec<Tensor>)> {
            let parameters = learner.parameters();
            parameters.iter().for_each(|p| p.tensor.shallow_clone().zero_grad());
            let loss = learner.sums(&batch, Mode::Train, store)?.remove(0);
            loss.backward();
            let gradients = parameters.iter().map(|p| p.tensor.grad().copy()).collect();
            Ok((loss.double_value(&[]), gradients))
        };
        let (plain, gradients) = run(None)?;
        let mut store = FrozenStore::new(ReuseConfig::default());
        for round in ["computed", "kept"] {
            let (loss, found) = run(Some(&mut store))?;
            let what = format!("{}, {round}", folder.display());
            assert!((loss - plain).abs() < 1e-6 * plain, "{what}: {loss} {plain}"); // f32
            for (found, expected) in found.iter().zip(&gradients) {
                let off = relative_difference(found, expected);
                assert!(off < 2e-5, "{what}: gradients differ by {off:e}"); // f32
            }
        }
        // the input of stage 2 for every token, without a cut, and no keys and values
        let tokens: usize = examples().iter().map(Example::length).sum();
        assert_eq!(store.bytes(), (tokens * 32 * 4) as u64, "{}", folder.display());
    }
    Ok(())
}

/// Two rows of the same tokens, and of other types.
#[test]
fn rows_of_other_types_are_other_rows() -> TestResult {
    let _alone = alone();
    let model = Decoder::open(&oracle_path("encoders/bert"), Kind::Float, Device::Cpu)?;
    let adapter = adapter(&model)?;
    let objective = LastToken::new(32);
    let learner = Learner::new(&model, &AdapterStack::one(&adapter), &objective);
    let mut texts = vec![examples().remove(0), examples().remove(0)];
    texts[1].sequences[0].row.token_types = Some(vec![1; texts[0].length()]);
    let batch = learner.batch(&texts)?;
    let plain = learner.sums(&batch, Mode::Eval, None)?[0].double_value(&[]);
    let mut store = FrozenStore::new(ReuseConfig::default());
    for _ in 0..2 {
        let found = learner.sums(&batch, Mode::Eval, Some(&mut store))?[0].double_value(&[]);
        assert!((found - plain).abs() < 1e-6 * plain, "{found} {plain}");
    }
    assert_eq!(store.len(), 2);
    Ok(())
}

#[test]
fn a_head_and_its_edits_are_trained_whole_and_block_by_block() -> TestResult {
    let _alone = alone();
    for folder in encoders()? {
        let model = Decoder::open(&folder, Kind::Float, Device::Cpu)?;
        let run = |checkpoint_activations| -> Result<Vec<f64>, Box<dyn std::error::Error>> {
            let (adapter, objective) = (adapter(&model)?, LastToken::new(32));
            let dataset = Dataset { train: examples(), validation: Vec::new() };
            let config = TrainConfig {
                checkpoint_activations,
                max_steps: Some(12),
                batch_size: 7,
                lr: 5e-2,
                shuffle: Shuffle::Plain,
                seed: 5,
                ..TrainConfig::default()
            };
            let mut losses = Losses::default();
            let learner = Learner::new(&model, &AdapterStack::one(&adapter), &objective);
            let mut trainer = Trainer::new(&learner, &dataset, config)?;
            trainer.run(&mut losses, &AtomicBool::new(false))?;
            Ok(losses.0)
        };
        let (plain, by_block) = (run(false)?, run(true)?);
        let what = folder.display();
        assert!(plain[11] < 0.7 * plain[0], "{what}: nothing is learned: {plain:?}");
        for (plain, found) in plain.iter().zip(&by_block) {
            let off = (plain - found).abs() / plain;
            assert!(off < 1e-4, "{what}: {plain} {found}"); // f32 over 12 steps of AdamW
        }
    }
    Ok(())
}

#[test]
fn next_tokens_of_an_encoder_are_refused_before_the_first_step() -> TestResult {
    let _alone = alone();
    let model = Decoder::open(&oracle_path("encoders/bert"), Kind::Float, Device::Cpu)?;
    let adapter = adapter(&model)?;
    let learner = Learner::new(&model, &AdapterStack::one(&adapter), &NextToken);
    let dataset = Dataset { train: examples(), validation: Vec::new() };
    let refusals = [
        Trainer::new(&learner, &dataset, TrainConfig::default()).err(),
        learner.evaluate(&examples(), 2, None).err(),
    ];
    for refused in refusals {
        assert!(
            matches!(&refused, Some(Error::Model(reft_models::Error::Encoder { model_type, .. })) if model_type == "bert"),
            "{refused:?}"
        );
    }
    Ok(())
}
