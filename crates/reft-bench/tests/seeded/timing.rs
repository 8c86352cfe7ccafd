//! The frozen floor and models of random weights.

use reft_bench::{FloorAdapter, Precision, TimingCase, measure};
use reft_methods::{MethodOptions, RANK, SHARE_WEIGHTS};
use reft_models::{
    Adapter, AdapterStack, Decoder, DecoderConfig, Mode, Model, Row, WeightStorage, Weights,
};
use reft_test_support::{Outcome, alone, oracle};
use reft_train::{Dataset, Example, Learner, NextToken, TrainConfig, Trainer};
use tch::{Device, Kind, Tensor};

fn example(n: i64) -> Example {
    let input_ids: Vec<i64> = (0..9).map(|t| 3 + (n * 31 + t * 17) % 120).collect();
    let labels = input_ids.iter().enumerate().map(|(t, id)| if t < 5 { -100 } else { *id });
    let labels = labels.collect();
    Example::of(n.to_string(), Row { input_ids, prompt_length: 5, ..Row::default() }, labels)
}

#[test]
fn the_floor_goes_down_to_the_embeddings_and_changes_nothing() -> Outcome {
    let _guard = alone();
    let decoder = Decoder::open(&oracle("tiny_llama"), Kind::Float, Device::Cpu)?;
    let examples = [example(0), example(1)];
    let floor = FloorAdapter::new(Device::Cpu);
    let stack = AdapterStack::one(&floor);
    let loss = |stack: &AdapterStack| -> Outcome<Tensor> {
        Ok(Learner::new(&decoder, stack, &NextToken).loss(&examples, Mode::Train)?)
    };
    let (with, without) = (loss(&stack)?, loss(&AdapterStack::EMPTY)?);
    assert_eq!(with, without, "the floor edits hidden states");
    assert!(with.requires_grad() && !without.requires_grad(), "the backward has nowhere to go");

    let dataset = Dataset { train: examples.to_vec(), validation: Vec::new() };
    let config = TrainConfig { max_steps: Some(2), lr: 0.1, ..TrainConfig::default() };
    let learner = Learner::new(&decoder, &stack, &NextToken);
    let mut trainer = Trainer::new(&learner, &dataset, config)?;
    for step in 0..2 {
        let micro_batches = trainer.micro_batches(step)?;
        trainer.step(&micro_batches)?;
    }
    drop(trainer);
    let [placeholder] = &floor.parameters()[..] else { panic!("one parameter") };
    assert_eq!(placeholder.tensor.double_value(&[0]), 0.0, "something was trained");
    assert!(decoder.weights().iter().all(|(_, weight)| !weight.requires_grad()));
    Ok(())
}

#[test]
fn random_weights_follow_the_seed_and_are_made_in_the_kind_asked_for() -> Outcome {
    let _guard = alone();
    let config = DecoderConfig::open(&oracle("tiny_llama"))?;
    let made = |seed: i64, kind: Kind| -> Outcome<Vec<(String, Tensor)>> {
        tch::manual_seed(seed);
        let weights = Weights::random(&config.describe().tensors);
        let decoder = Decoder::from_weights(config.clone(), &weights, kind, Device::Cpu)?;
        Ok(decoder.weights().into_iter().map(|(name, weight)| (name, weight.dense())).collect())
    };
    let first = made(1, Kind::Float)?;
    assert_eq!(first, made(1, Kind::Float)?);
    for (((name, tensor), (_, other)), (_, half)) in
        first.iter().zip(made(2, Kind::Float)?).zip(made(1, Kind::BFloat16)?)
    {
        assert_eq!(half.kind(), Kind::BFloat16, "{name}");
        if tensor.dim() == 1 {
            assert_eq!(tensor, &tensor.ones_like(), "{name}");
        } else {
            assert_ne!(tensor, &other, "{name}");
            let (mean, deviation) = (tensor.mean(Kind::Double), tensor.std(true));
            // at least 2,048 draws: five standard errors, 0.02·5/√2048 of the mean, /√2 of the deviation
            assert!(mean.double_value(&[]).abs() < 2.3e-3, "{name}: {mean}");
            assert!((deviation.double_value(&[]) - 0.02).abs() < 1.6e-3, "{name}: {deviation}");
        }
    }
    Ok(())
}

#[test]
fn an_epoch_warms_up_with_a_step_that_does_not_count() -> Outcome {
    let _guard = alone();
    let case = TimingCase {
        model: oracle("tiny_llama"),
        random_weights: true,
        kind: Precision::F32,
        method: "loreft".to_owned(),
        options: MethodOptions::default().with(&RANK, 2).with(&SHARE_WEIGHTS, true),
        batch_size: 2,
        prompt_length: 12,
        response_length: 3,
        steps: 3,
        reuse: true,
        weights: WeightStorage::Dense,
        int8_products: false,
        checkpoint_activations: false,
        new_tokens: 4,
    };
    let measured = measure(&case, Device::Cpu)?;
    assert_eq!(measured.first_epoch.len(), 3);
    assert_eq!(measured.later_epochs.map(|seconds| seconds.len()), Some(3));
    assert_eq!(measured.trainable_parameters, 4 * (2 * 2 * 64 + 2));
    assert_eq!(measured.generation.len(), 3);
    let plain = measure(&TimingCase { reuse: false, new_tokens: 0, ..case }, Device::Cpu)?;
    assert_eq!((plain.later_epochs, plain.generation), (None, Vec::new()));
    Ok(())
}
