//! A task's loss with the divergence from the frozen model beside it, against plain torch. Files and generator: `tests/oracle/closeness`,
//! `tools/oracle/make_closeness.py`.

use std::sync::atomic::AtomicBool;

use reft_methods::load_trainable_adapters;
use reft_models::{Adapter, AdapterStack, Decoder, Mode, Row};
use reft_test_support::{oracle_text, tensors};
use reft_train::{
    Dataset, Error, Example, IGNORE_INDEX, KeepingClose, Learner, NextToken, Objective, Part,
    Progress, ScheduleKind, Shuffle, Step, StepStats, TrainConfig, Trainer,
};
use serde_json::Value;
use tch::Kind;

use crate::tiny_llama::{
    TestResult, adapter, alone, decoder, examples, oracle_path, relative_difference,
};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn oracle() -> Outcome<Value> {
    Ok(serde_json::from_str(&oracle_text("closeness/closeness.json")?)?)
}

fn rows(rows: &Value) -> Outcome<Vec<Example>> {
    let of_row = |(i, row): (usize, &Value)| -> Outcome<Example> {
        let input_ids: Vec<i64> = serde_json::from_value(row["input_ids"].clone())?;
        let prompt_length = row["prompt_length"].as_u64().ok_or("prompt_length")? as usize;
        let mut labels = vec![IGNORE_INDEX; prompt_length];
        labels.extend(&input_ids[prompt_length..]);
        let row = Row { input_ids, prompt_length, ..Row::default() };
        Ok(Example::of(format!("row {i}"), row, labels))
    };
    rows.as_array().ok_or("rows")?.iter().enumerate().map(of_row).collect()
}

/// PEFT's adapter at its start.
fn start(decoder: &Decoder) -> reft_methods::Result<Box<dyn Adapter>> {
    let adapters = load_trainable_adapters(&oracle_path("closeness/adapter/start"), decoder)?;
    Ok(adapters.into_iter().next().expect("invariant: one adapter"))
}

/// Gradients at the start, and the steps and parameters, of a case of the oracle: all rows in each step, whatever micro-batches they are in.
#[test]
fn value_gradients_and_five_steps_are_those_of_plain_torch() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let oracle = oracle()?;
    let dataset = Dataset { train: rows(&oracle["rows"])?, validation: Vec::new() };
    let replay = rows(&oracle["replay"])?;
    let lr = oracle["lr"].as_f64().ok_or("lr")?;
    for (name, case) in oracle["cases"].as_object().ok_or("cases")? {
        let number = |value: &Value| value.as_f64().ok_or("a number");
        let (weight, top_k) = (number(&case["weight"])?, case["top_k"].as_u64().ok_or("top_k")?);
        let is_replay = case["where"] == "replay";
        let part = if is_replay { Part::Replay } else { Part::Task };
        let expected = tensors(&format!("closeness/{name}.safetensors"))?;
        let objective = KeepingClose::new(&NextToken, weight, top_k as usize, part);
        for (batch_size, reuse, checkpoint_activations) in
            [(6, true, false), (2, false, false), (3, true, true)]
        {
            let what = format!("{name}, {batch_size} rows at once, reuse {reuse}");
            let adapter = start(&decoder)?;
            let learner = Learner::new(&decoder, &AdapterStack::one(&*adapter), &objective);
            let config = TrainConfig {
                epochs: Some(5),
                batch_size,
                grad_accum: 6 / batch_size,
                lr,
                schedule: ScheduleKind::Constant,
                max_grad_norm: 0.0,
                shuffle: Shuffle::None,
                reuse,
                checkpoint_activations,
                ..TrainConfig::default()
            };
            let mut trainer = Trainer::new(&learner, &dataset, config)?;
            if is_replay {
                trainer = trainer.replaying(&replay, replay.len())?;
            }
            for (step, expected_step) in case["steps"].as_array().ok_or("steps")?.iter().enumerate()
            {
                let batches = trainer.micro_batches(step)?;
                let Step::Taken(stats) = trainer.step(&batches)? else { panic!("overflow") };
                for (found, expected) in [
                    (stats.loss, &expected_step["loss"]),
                    (stats.terms["next-token"], &expected_step["task"]),
                    (stats.terms["kl"], &expected_step["kl"]),
                ] {
                    let expected = number(expected)?;
                    // f32, four layers, and AdamW that divides by small gradients
                    assert!(
                        (found - expected).abs() < 2e-5 * expected,
                        "{what}: {found} {expected}"
                    );
                }
                if step == 0 {
                    for parameter in learner.parameters() {
                        let expected = &expected[&format!("grad.{}", parameter.name)];
                        let found = parameter.tensor.grad();
                        assert!(expected.abs().max().double_value(&[]) > 1e-4, "no power");
                        let difference = relative_difference(&found, expected);
                        assert!(difference < 1e-4, "{what}, {}: {difference:e}", parameter.name); // f32
                    }
                }
            }
            for parameter in learner.parameters() {
                let expected = &expected[&format!("final.{}", parameter.name)];
                let difference = relative_difference(&parameter.tensor, expected);
                assert!(difference < 1e-3, "{what}, {}: {difference:e}", parameter.name); // f32, five steps
            }
        }
    }
    Ok(())
}

#[derive(Default)]
struct Steps(Vec<StepStats>);

impl Progress for Steps {
    fn step(&mut self, stats: &StepStats) {
        self.0.push(stats.clone());
    }
}

/// A run with replay, interrupted after some steps.
#[test]
fn a_run_with_replay_goes_on_bit_for_bit_and_only_with_the_same() -> TestResult {
    struct StopAt<'a>(usize, &'a AtomicBool, Steps);
    impl Progress for StopAt<'_> {
        fn step(&mut self, stats: &StepStats) {
            self.1.store(stats.step == self.0, std::sync::atomic::Ordering::Relaxed);
            self.2.step(stats);
        }
    }
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let directory = tempfile::tempdir()?;
    let dataset = Dataset { train: examples(7), validation: Vec::new() };
    let replay = examples(12).split_off(7);
    let run = |name: &str, stop_at: usize, weight: f64, replay: &[Example]| -> Outcome<_> {
        let adapter = adapter(&decoder, Default::default(), 0.2, 3)?;
        let objective = KeepingClose::new(&NextToken, weight, 4, Part::Replay);
        let learner = Learner::new(&decoder, &AdapterStack::one(&adapter), &objective);
        let config =
            TrainConfig { max_steps: Some(9), batch_size: 3, lr: 1e-2, ..Default::default() };
        let trainer = Trainer::new(&learner, &dataset, config)?.replaying(replay, 2)?;
        let mut trainer = trainer.resuming_in(&directory.path().join(name))?;
        let stop = AtomicBool::new(false);
        let mut progress = StopAt(stop_at, &stop, Steps::default());
        trainer.run(&mut progress, &stop)?;
        let losses: Vec<f64> = progress.2.0.iter().map(|stats| stats.loss).collect();
        let state: Vec<_> = learner.parameters().iter().map(|p| p.tensor.detach().copy()).collect();
        Ok((losses, state))
    };
    let (whole, expected) = run("whole", 0, 0.5, &replay)?;
    let (mut losses, _) = run("broken", 4, 0.5, &replay)?;
    for (weight, replay, field) in [(0.4, &replay[..], "kl_weight"), (0.5, &replay[1..], "replay")]
    {
        let refused = run("broken", 0, weight, replay).err().ok_or("not refused")?;
        let refused = refused.downcast::<Error>()?;
        assert!(
            matches!(&*refused, Error::ResumeMismatch { field: f, .. } if f == field),
            "{refused}"
        );
    }
    let (rest, found) = run("broken", 0, 0.5, &replay)?;
    losses.extend(rest);
    assert_eq!((losses, found), (whole, expected));
    Ok(())
}

/// The frozen model's outputs for a row are computed once: from then on nothing but the adapters' forward is run.
#[test]
fn the_frozen_models_next_tokens_are_computed_once() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let adapter = adapter(&decoder, Default::default(), 0.0, 3)?;
    for top_k in [0, 4] {
        let objective = KeepingClose::new(&NextToken, 0.5, top_k, Part::Task);
        let learner = Learner::new(&decoder, &AdapterStack::one(&adapter), &objective);
        let plain = Learner::new(&decoder, &AdapterStack::one(&adapter), &NextToken);
        let count = |learner: &Learner| -> reft_train::Result<usize> {
            let mut store = reft_train::FrozenStore::new(Default::default());
            let batch = learner.batch(&examples(5))?;
            let first = learner.sums(&batch, Mode::Eval, Some(&mut store))?;
            let n = store.len();
            let again = learner.sums(&batch, Mode::Eval, Some(&mut store))?;
            assert_eq!(first, again);
            assert_eq!(store.len(), n);
            Ok(n)
        };
        assert_eq!(count(&learner)?, count(&plain)? + 5);
    }
    Ok(())
}

/// A method that changes the model's own weights leaves no frozen model to be close to.
#[test]
fn full_fine_tuning_is_refused() -> TestResult {
    let decoder = decoder(Kind::Float)?;
    let full = reft_methods::resolve(
        "full",
        &Default::default(),
        reft_models::Model::description(&decoder),
    )?;
    let adapters = full.build(&decoder, "tiny")?;
    let objective = KeepingClose::new(&NextToken, 0.5, 4, Part::Replay);
    let dataset = Dataset { train: examples(4), validation: Vec::new() };
    let learner = Learner::new(&decoder, &AdapterStack::one(&*adapters[0]), &objective);
    let refused = Trainer::new(&learner, &dataset, TrainConfig::default());
    assert!(matches!(refused, Err(Error::NoPlainModel { method, .. }) if method == "full"));
    assert_eq!(objective.name(), "next-token");
    Ok(())
}

/// Virtual tokens and prefixes stand before rows of the adapted model alone. So the divergence leaves out the first token, which only they
/// predict, and a row's divergence does not depend on the rest of its batch.
#[test]
fn what_only_virtual_tokens_predict_has_no_part_in_it() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let mut rows = examples(4);
    let whole = &mut rows[2].sequences[0];
    whole.row.prompt_length = 0;
    whole.labels = whole.row.input_ids.clone(); // a text that is learned whole
    for method in ["prompt", "prefix", "lora"] {
        tch::manual_seed(3);
        let options = Default::default();
        let method =
            reft_methods::resolve(method, &options, reft_models::Model::description(&decoder))?;
        let adapters = method.build(&decoder, "tiny")?;
        tch::no_grad(|| {
            for parameter in adapters[0].parameters() {
                let waves = tch::Tensor::arange(
                    parameter.tensor.numel() as i64,
                    (Kind::Float, tch::Device::Cpu),
                );
                let waves = (waves * 0.7).sin().view_as(&parameter.tensor) * 0.1;
                let _moved = parameter.tensor.shallow_clone().g_add_(&waves);
            }
        });
        let name = adapters[0].method().to_owned();
        for top_k in [0, 5] {
            let objective = KeepingClose::new(&NextToken, 0.5, top_k, Part::Task);
            let learner = Learner::new(&decoder, &AdapterStack::of_boxed(&adapters)?, &objective);
            let divergence = |rows: &[Example]| -> Outcome<[f64; 2]> {
                let batch = learner.batch(rows)?;
                let sums = learner.sums(&batch, Mode::Eval, None)?;
                Ok([sums[1].double_value(&[]), objective.counts(&batch)[1]])
            };
            let together = divergence(&rows)?;
            let labels = rows.iter().flat_map(|row| row.labels()[1..].iter());
            let n = labels.filter(|label| **label != IGNORE_INDEX).count();
            assert_eq!(together[1], n as f64, "{name}");
            assert!(together[0] > 1e-2, "{name}: no power: {together:?}");
            let alone: f64 = rows
                .iter()
                .map(|row| Ok(divergence(std::slice::from_ref(row))?[0]))
                .sum::<Outcome<f64>>()?;
            assert!((alone - together[0]).abs() < 1e-4 * alone, "{name}: {alone} {together:?}"); // f32
        }
    }
    Ok(())
}
