//! Runs with accumulation, broken numbers and thawed weights.

use std::sync::atomic::AtomicBool;

use reft_core::MapKind;
use reft_methods::ReftAdapter;
use reft_models::{Adapter, AdapterStack, Model};
use reft_train::{
    Dataset, Error, Learner, NextToken, Outcome, Progress, ScheduleKind, Shuffle, Silent, Step,
    StepStats, TrainConfig, Trainer,
};
use tch::{Kind, Tensor};

use crate::tiny_llama::{
    TestResult, adapter, alone, decoder, examples, learner, relative_difference,
};

fn options() -> TrainConfig {
    TrainConfig {
        max_steps: Some(3),
        batch_size: 6,
        lr: 1e-2,
        schedule: ScheduleKind::Constant,
        shuffle: Shuffle::None,
        ..TrainConfig::default()
    }
}

#[test]
fn cutting_a_step_into_micro_batches_changes_nothing_but_memory() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let dataset = Dataset { train: examples(6), validation: Vec::new() };
    let plain = Learner::new(&decoder, &AdapterStack::EMPTY, &NextToken);
    let targets: Vec<i64> = dataset
        .train
        .iter()
        .map(|e| plain.batch([e]).map(|b| b.n_targets()))
        .collect::<Result<_, _>>()?;
    assert!(targets.iter().any(|n| *n != targets[0]), "no power: {targets:?}");
    let run = |batch_size, grad_accum| -> Result<(f64, f64, Tensor), Error> {
        let adapter = adapter(&decoder, MapKind::Householder, 0.0, 1)?;
        let options = TrainConfig { batch_size, grad_accum, ..options() };
        let mut trainer = Trainer::new(&learner(&decoder, &adapter), &dataset, options)?;
        let micro_batches = trainer.micro_batches(0)?;
        assert_eq!(micro_batches.len(), grad_accum);
        let Step::Taken(stats) = trainer.step(&micro_batches)? else {
            panic!("no overflow in f32")
        };
        let grads = adapter.parameters().into_iter().map(|p| p.tensor.grad().flatten(0, -1));
        Ok((stats.loss, stats.grad_norm, Tensor::cat(&grads.collect::<Vec<_>>(), 0)))
    };
    let (loss, norm, grads) = run(6, 1)?;
    for (batch_size, grad_accum) in [(1, 6), (2, 3), (4, 2)] {
        let (other_loss, other_norm, other_grads) = run(batch_size, grad_accum)?;
        // f32 sums in another order
        assert!((loss - other_loss).abs() < 1e-6 * loss, "{loss} {other_loss}");
        assert!((norm - other_norm).abs() < 1e-5 * norm, "{norm} {other_norm}");
        let difference = relative_difference(&other_grads, &grads);
        assert!(difference < 1e-5, "{difference:e}");
    }
    Ok(())
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let directory = tempfile::tempdir()?;
    let run = directory.path().join("run");
    let adapter = adapter(&decoder, MapKind::Householder, 0.0, 1)?;
    let dataset = Dataset { train: examples(6), validation: Vec::new() };
    let options = TrainConfig { lr: 1e30, checkpoint_every: 1, max_steps: Some(50), ..options() };
    let mut trainer =
        Trainer::new(&learner(&decoder, &adapter), &dataset, options)?.starting_in(&run)?;
    let stopped = trainer.run(&mut Silent, &AtomicBool::new(false));
    let Err(Error::NotFinite { step, ids, value, .. }) = stopped else { panic!("{stopped:?}") };
    assert!(step > 1 && !value.is_finite());
    let all: Vec<String> = dataset.train.iter().map(|example| example.id.clone()).collect();
    assert_eq!(ids, all);
    let name = format!("checkpoint/step-{:08}", step - 1);
    assert!(run.join(name).is_dir());
    assert!(!run.join(ReftAdapter::FILE_NAME).exists());
    Ok(())
}

#[test]
fn only_the_micro_batch_at_fault_is_named() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let adapter = adapter(&decoder, MapKind::Householder, 0.0, 1)?;
    let dataset = Dataset { train: examples(4), validation: Vec::new() };
    let broken = decoder
        .weights()
        .into_iter()
        .find(|(name, _)| name == "model.embed_tokens.weight")
        .ok_or("no embedding")?
        .1;
    let id = dataset.train[2].row().input_ids[1]; // of no other row
    assert!(dataset.train.iter().filter(|e| e.row().input_ids.contains(&id)).count() == 1);
    let _filled = tch::no_grad(|| broken.dense().get(id).fill_(f64::NAN));
    let options = TrainConfig { batch_size: 1, grad_accum: 4, ..options() };
    let before = adapter.state();
    let mut trainer = Trainer::new(&learner(&decoder, &adapter), &dataset, options)?;
    let micro_batches = trainer.micro_batches(0)?;
    let stopped = trainer.step(&micro_batches);
    assert!(
        matches!(&stopped, Err(Error::NotFinite { what: "loss", step: 1, ids, .. }) if *ids == ["row 3"]),
        "{stopped:?}"
    );
    assert_eq!(adapter.state(), before);
    Ok(())
}

#[test]
fn a_weight_that_wants_a_gradient_is_refused() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let adapter = adapter(&decoder, MapKind::Householder, 0.0, 1)?;
    let dataset = Dataset { train: examples(4), validation: Vec::new() };
    let (name, weight) = decoder.weights().swap_remove(5);
    let _thawed = weight.dense().set_requires_grad(true);
    let refused = Trainer::new(&learner(&decoder, &adapter), &dataset, options());
    assert!(matches!(refused, Err(Error::NotFrozen { name: found }) if found == name));
    Ok(())
}

#[test]
fn nothing_to_train_on_is_refused() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let adapter = adapter(&decoder, MapKind::Householder, 0.0, 1)?;
    let dataset = Dataset { train: Vec::new(), validation: examples(2) };
    let refused = Trainer::new(&learner(&decoder, &adapter), &dataset, options());
    assert!(matches!(refused, Err(Error::TooFewExamples { train: 0, validation: 2 })));
    Ok(())
}

#[test]
fn the_loss_of_examples_does_not_depend_on_their_batches() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let adapter = adapter(&decoder, MapKind::Householder, 0.5, 1)?;
    let examples = examples(7);
    let one = learner(&decoder, &adapter).evaluate(&examples, 1, None)?;
    let all = learner(&decoder, &adapter).evaluate(&examples, 7, None)?;
    assert_eq!(one.target_tokens, all.target_tokens);
    assert!((one.loss - all.loss).abs() < 1e-6 * one.loss, "{one:?} {all:?}"); // f32 sums in another order
    assert!((one.perplexity - one.loss.exp()).abs() < 1e-9 * one.perplexity);
    // the adapter starts as the identity
    let base =
        Learner::new(&decoder, &AdapterStack::EMPTY, &NextToken).evaluate(&examples, 7, None)?;
    assert!((base.loss - all.loss).abs() < 1e-5 * base.loss, "{base:?} {all:?}");
    Ok(())
}

#[test]
fn a_run_ends_after_the_first_step_whose_loss_is_low_enough() -> TestResult {
    struct Losses(Vec<f64>);
    impl Progress for Losses {
        fn step(&mut self, stats: &StepStats) {
            self.0.push(stats.loss);
        }
    }
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let dataset = Dataset { train: examples(6), validation: Vec::new() };
    let run = |enough: Option<f64>| -> Result<Vec<f64>, Error> {
        let adapter = adapter(&decoder, MapKind::Householder, 0.0, 1)?;
        let options = TrainConfig { max_steps: Some(8), stop_at_loss: enough, ..options() };
        let mut trainer = Trainer::new(&learner(&decoder, &adapter), &dataset, options)?;
        let mut losses = Losses(Vec::new());
        let outcome = trainer.run(&mut losses, &AtomicBool::new(false))?;
        assert!(matches!(outcome, Outcome::Finished(summary) if summary.steps == losses.0.len()));
        Ok(losses.0)
    };
    let all = run(None)?;
    assert_eq!(all.len(), 8);
    assert!(all[3] < all[2] && all[2] < all[1], "no power: {all:?}");
    assert_eq!(run(Some(all[3]))?, all[..4]);
    Ok(())
}
