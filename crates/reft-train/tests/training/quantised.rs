//! A quantised base model: training on it equals training on its dequantised weights.

use std::sync::atomic::AtomicBool;

use reft_core::MapKind;
use reft_models::{
    Adapter, Decoder, DecoderConfig, Model, WeightStorage, Weights, save_safetensors,
};
use reft_train::{Dataset, Error, Silent, Step, TrainConfig, Trainer};
use tch::{Device, Kind, Tensor};

use crate::tiny_llama::{
    TestResult, adapter, alone, examples, learner, oracle_path, relative_difference,
};

fn quantised(storage: WeightStorage, kind: Kind) -> reft_models::Result<Decoder> {
    let path = oracle_path("tiny_llama");
    let weights = Weights::open(&path)?.held_as(storage);
    Decoder::from_weights(DecoderConfig::open(&path)?, &weights, kind, Device::Cpu)
}

/// The model with another's dequantised weights.
fn dequantised(decoder: &Decoder) -> Result<Decoder, Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let tensors = decoder.weights().into_iter().map(|(name, weight)| (name, weight.dense()));
    let file = dir.path().join("model.safetensors");
    save_safetensors(&file, &tensors.collect::<Vec<_>>(), None)?;
    let (config, weights) = (decoder.config().clone(), Weights::open(&file)?);
    Ok(Decoder::from_weights(config, &weights, Kind::Float, Device::Cpu)?)
}

/// Loss and gradients of one step.
fn step(
    decoder: &Decoder,
    config: TrainConfig,
) -> Result<(f64, Vec<Tensor>), Box<dyn std::error::Error>> {
    let adapter = adapter(decoder, MapKind::Householder, 0.0, 1)?;
    let parameters = adapter.parameters();
    let dataset = Dataset { train: examples(8), validation: Vec::new() };
    let mut trainer = Trainer::new(&learner(decoder, &adapter), &dataset, config)?;
    let micro_batches = trainer.micro_batches(0)?;
    let Step::Taken(stats) = trainer.step(&micro_batches)? else { return Err("overflow".into()) };
    Ok((stats.loss, parameters.iter().map(|p| p.tensor.grad().copy()).collect()))
}

#[test]
fn loss_and_gradients_are_those_of_the_dequantised_base() -> TestResult {
    let _alone = alone();
    let dense = quantised(WeightStorage::Dense, Kind::Float)?;
    assert!(!dense.is_quantised());
    // the size of f32 over that of a block's number: 32 / 8.5 and 32 / 4.5, with embeddings and head in eight bits
    for (storage, smaller) in [(WeightStorage::Int8, 3.7), (WeightStorage::Int4, 6.0)] {
        let decoder = quantised(storage, Kind::Float)?;
        assert!(decoder.is_quantised());
        let ratio = dense.weight_bytes() as f64 / decoder.weight_bytes() as f64;
        assert!(ratio > smaller, "{storage}: {ratio}");
        let base = dequantised(&decoder)?;
        assert_eq!(base.weight_bytes(), dense.weight_bytes());
        for reuse in [false, true] {
            let config =
                TrainConfig { batch_size: 8, max_grad_norm: 0.0, reuse, ..TrainConfig::default() };
            let (loss, gradients) = step(&decoder, config.clone())?;
            let (expected, expected_gradients) = step(&base, config.clone())?;
            let (unlike, _) = step(&dense, config)?;
            assert!((loss - expected).abs() < 1e-5, "{storage}: {loss} {expected}"); // f32, sums in another order
            assert!(
                (unlike - expected).abs() > 1e-4,
                "no power: the blocks are exact, {unlike} {expected}"
            );
            for (found, expected) in gradients.iter().zip(&expected_gradients) {
                let difference = relative_difference(found, expected);
                assert!(difference < 1e-4, "{storage}, reuse {reuse}: {difference:e}"); // measured 1e-6
            }
        }
    }
    Ok(())
}

#[test]
fn a_run_on_a_quantised_base_learns_and_is_resumed_on_the_same_one_only() -> TestResult {
    let _alone = alone();
    let dir = tempfile::tempdir()?;
    let dataset = Dataset { train: examples(8), validation: Vec::new() };
    let options =
        TrainConfig { max_steps: Some(20), batch_size: 8, lr: 1e-2, ..TrainConfig::default() };
    let decoder = quantised(WeightStorage::Int8, Kind::BFloat16)?;
    assert_eq!(decoder.kind(), Kind::BFloat16);
    let first = adapter(&decoder, MapKind::Householder, 0.0, 1)?;
    let mut trainer = Trainer::new(&learner(&decoder, &first), &dataset, options.clone())?
        .starting_in(dir.path())?;
    assert!(trainer.describe_kinds().contains("blocks of integers"));
    let micro_batches = trainer.micro_batches(0)?;
    let Step::Taken(start) = trainer.step(&micro_batches)? else { return Err("overflow".into()) };
    trainer.run(&mut Silent, &AtomicBool::new(false))?;
    let Step::Taken(end) = trainer.step(&micro_batches)? else { return Err("overflow".into()) };
    assert!(end.loss < start.loss - 1.0, "{} {}", start.loss, end.loss);
    drop(trainer);
    let other = quantised(WeightStorage::Int4, Kind::BFloat16)?;
    let second = adapter(&other, MapKind::Householder, 0.0, 1)?;
    let refused =
        Trainer::new(&learner(&other, &second), &dataset, options)?.resuming_in(dir.path());
    let field = match refused {
        Err(Error::ResumeMismatch { field, .. }) => field,
        Err(error) => return Err(error.into()),
        Ok(_) => return Err("it went on".into()),
    };
    assert_eq!(field, "weights");
    Ok(())
}
