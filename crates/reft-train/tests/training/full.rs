//! Full fine-tuning in half precision: the optimizer's f32 copies take the steps.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use reft_methods::{MethodOptions, resolve};
use reft_models::{AdapterStack, Decoder, Model};
use reft_train::{
    Dataset, Learner, NextToken, Outcome, Progress, ScheduleKind, Silent, StepStats, TrainConfig,
    Trainer,
};
use tch::{Kind, Tensor};

use crate::tiny_llama::{TestResult, alone, decoder, examples};

fn config(steps: usize) -> TrainConfig {
    TrainConfig {
        max_steps: Some(steps),
        batch_size: 4,
        lr: 1e-5,
        schedule: ScheduleKind::Constant,
        checkpoint_every: 4,
        seed: 3,
        ..TrainConfig::default()
    }
}

/// Runs `act` with a trainer of all weights of a model; returns its result and the weights.
fn train<T>(
    decoder: &Decoder,
    config: TrainConfig,
    act: impl FnOnce(Trainer) -> reft_train::Result<T>,
) -> Result<(T, Vec<Tensor>), Box<dyn std::error::Error>> {
    let methods = resolve("full", &MethodOptions::default(), decoder.description())?;
    let adapters = methods.build(decoder, "tiny")?;
    let dataset = Dataset { train: examples(12), validation: Vec::new() };
    let learner = Learner::new(decoder, &AdapterStack::of_boxed(&adapters)?, &NextToken);
    let done = act(Trainer::new(&learner, &dataset, config)?)?;
    let weights = learner.parameters().iter().map(|p| p.tensor.detach().copy()).collect();
    Ok((done, weights))
}

/// Share of the numbers that changed.
fn changed(before: &[Tensor], after: &[Tensor]) -> f64 {
    let differ = |(a, b): (&Tensor, &Tensor)| a.ne_tensor(b).sum(Kind::Int64).int64_value(&[]);
    let changed: i64 = before.iter().zip(after).map(differ).sum();
    changed as f64 / before.iter().map(|t| t.numel() as f64).sum::<f64>()
}

/// A step of 1e-5 is less than the distance of two neighbours in bf16 for all numbers above 3e-3; two hundred of them are not.
#[test]
fn no_step_is_rounded_away() -> TestResult {
    let _alone = alone();
    for kind in [Kind::BFloat16, Kind::Float] {
        let model = decoder(kind)?;
        let before: Vec<Tensor> =
            model.weights().iter().filter_map(|(_, w)| Some(w.tensor()?.detach().copy())).collect();
        let stop = AtomicBool::new(false);
        let (described, after) = train(&model, config(200), |mut trainer| {
            trainer.run(&mut Silent, &stop)?;
            Ok(trainer.describe_kinds())
        })?;
        let share = changed(&before, &after);
        assert!(share > 0.7, "{kind:?}: {share} of the weights have changed");
        let says = "the trained tensors' copies that take the steps and AdamW in f32";
        assert_eq!(described.contains(says), kind == Kind::BFloat16, "{described}");
    }
    Ok(())
}

struct StopAt<'a>(usize, &'a AtomicBool);

impl Progress for StopAt<'_> {
    fn step(&mut self, stats: &StepStats) {
        self.1.store(stats.step == self.0, Ordering::Relaxed);
    }
}

#[test]
fn a_run_in_bf16_that_is_stopped_goes_on_bit_for_bit() -> TestResult {
    let _alone = alone();
    let directory = tempfile::tempdir()?;
    let (whole, broken) = (directory.path().join("whole"), directory.path().join("broken"));
    let run = |directory: &Path, stop_at: usize, resumes: bool| {
        let stop = AtomicBool::new(false);
        train(&decoder(Kind::BFloat16)?, config(20), |trainer| {
            let mut trainer = match resumes {
                true => trainer.resuming_in(directory)?,
                false => trainer.starting_in(directory)?,
            };
            trainer.run(&mut StopAt(stop_at, &stop), &stop)
        })
    };
    let (_, expected) = run(&whole, usize::MAX, false)?;
    let (stopped, _) = run(&broken, 10, false)?;
    assert!(matches!(stopped, Outcome::Interrupted(_)));
    let (_, found) = run(&broken, usize::MAX, true)?;
    assert!(found == expected, "the weights differ");
    let file = |run: &Path| std::fs::read(run.join("model.safetensors"));
    assert!(file(&broken)? == file(&whole)?, "the files differ");
    Ok(())
}
