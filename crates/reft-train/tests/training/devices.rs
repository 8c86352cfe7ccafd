//! A model in parts is trained to the losses and tensors of one in one piece, bit for bit.

use std::sync::atomic::AtomicBool;

use reft_core::MapKind;
use reft_methods::{LAYERS, MethodOptions, N_VIRTUAL_TOKENS, RANK, method_names, resolve};
use reft_models::{AdapterStack, Decoder, Model, Placement, load_safetensors};
use reft_train::{
    Dataset, NextToken, Outcome, Progress, ReuseConfig, Silent, StepStats, TrainConfig, Trainer,
};
use tch::{Device, Kind, Tensor};

use crate::tiny_llama::{TestResult, adapter, alone, examples, learner, oracle_path};

fn decoder(blocks: &[usize]) -> TestResult<Decoder> {
    let parts: Vec<(Device, usize)> = blocks.iter().map(|n| (Device::Cpu, *n)).collect();
    Ok(Decoder::open(&oracle_path("tiny_llama"), Kind::Float, Placement::of_blocks(&parts)?)?)
}

fn config(by_block: bool) -> TrainConfig {
    TrainConfig {
        epochs: Some(2),
        batch_size: 3,
        lr: 1e-2,
        weight_decay: 0.01,
        max_grad_norm: 0.1, // below the gradients' norm
        checkpoint_activations: by_block,
        checkpoint_every: 2,
        seed: 7,
        ..TrainConfig::default()
    }
}

#[derive(Default)]
struct Losses(Vec<(u64, u64)>);

impl Progress for &mut Losses {
    fn step(&mut self, stats: &StepStats) {
        self.0.push((stats.loss.to_bits(), stats.grad_norm.to_bits()));
    }
}

/// The bits of every step's loss and norm of the gradient, and the trained tensors.
type Trained = (Vec<(u64, u64)>, Vec<(String, Tensor)>);

fn train(blocks: &[usize], method: &str, by_block: bool, reuse: bool) -> TestResult<Trained> {
    let model = decoder(blocks)?;
    tch::manual_seed(3);
    let options = MethodOptions::default();
    let options = match method {
        "loreft" => options.with(&RANK, 3).with(&LAYERS, [1, 3]),
        "lora" | "dora" => options.with(&RANK, 2),
        "prefix" | "prompt" => options.with(&N_VIRTUAL_TOKENS, 3),
        _ => options,
    };
    let adapters = resolve(method, &options, model.description())?.build(&model, "tiny")?;
    let stack = AdapterStack::of_boxed(&adapters)?;
    let learner = reft_train::Learner::new(&model, &stack, &NextToken);
    let dataset = Dataset { train: examples(8), validation: Vec::new() };
    let mut trainer = Trainer::new(&learner, &dataset, config(by_block))?;
    if reuse {
        trainer = trainer.keeping(ReuseConfig::default());
    }
    let mut losses = Losses::default();
    trainer.run(&mut (&mut losses), &AtomicBool::new(false))?;
    let tensor = |p: &reft_core::Parameter| (p.name.clone(), p.tensor.detach().copy());
    Ok((losses.0, learner.parameters().iter().map(tensor).collect()))
}

#[test]
fn every_method_trains_to_the_same_bits_in_parts() -> TestResult {
    let _alone = alone();
    for method in method_names() {
        for (by_block, reuse) in [(false, false), (false, true), (true, true)] {
            let whole = train(&[4], method, by_block, reuse)?;
            assert_eq!(whole.0.len(), 6);
            for blocks in [&[1, 3][..], &[2, 1, 1]] {
                let found = train(blocks, method, by_block, reuse)?;
                let what = format!("{method} in {blocks:?}, {by_block}, {reuse}");
                assert_eq!(found.0, whole.0, "losses of {what}");
                assert_eq!(found.1, whole.1, "tensors of {what}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_run_goes_on_in_other_parts_with_the_same_bits() -> TestResult {
    let _alone = alone();
    let dataset = Dataset { train: examples(8), validation: Vec::new() };
    let whole = decoder(&[4])?;
    let directory = tempfile::tempdir()?;
    let (one, cut) = (directory.path().join("one"), directory.path().join("cut"));
    let reft = |model: &Decoder, seed| adapter(model, MapKind::Householder, 0.2, seed);
    let own = reft(&whole, 5)?;
    Trainer::new(&learner(&whole, &own), &dataset, config(false))?
        .starting_in(&one)?
        .run(&mut Silent, &AtomicBool::new(false))?;

    let model = decoder(&[2, 2])?;
    let own = reft(&model, 5)?;
    let stop = AtomicBool::new(false);
    let mut until = Until { steps: 4, stop: &stop };
    let mut first =
        Trainer::new(&learner(&model, &own), &dataset, config(false))?.starting_in(&cut)?;
    assert!(matches!(first.run(&mut until, &stop)?, Outcome::Interrupted(_)));
    drop(first);

    let model = decoder(&[1, 1, 2])?;
    let own = reft(&model, 999)?;
    Trainer::new(&learner(&model, &own), &dataset, config(false))?
        .resuming_in(&cut)?
        .run(&mut Silent, &AtomicBool::new(false))?;
    let tensors =
        |run: &std::path::Path| load_safetensors(&run.join(reft_methods::ReftAdapter::FILE_NAME));
    assert_eq!(tensors(&cut)?, tensors(&one)?);
    Ok(())
}

/// Asks a run to stop after some steps.
struct Until<'a> {
    steps: usize,
    stop: &'a AtomicBool,
}

impl Progress for Until<'_> {
    fn step(&mut self, stats: &StepStats) {
        self.stop.store(stats.step >= self.steps, std::sync::atomic::Ordering::Relaxed);
    }
}
