//! Runs in several processes equal the run in one, for the methods that differ most: edits, weights beside weights, all weights.

use std::sync::atomic::AtomicBool;

use reft_distributed::ProcessGroup;
use reft_methods::{LAYERS, MethodOptions, RANK, resolve};
use reft_models::{AdapterStack, Decoder, Model, Row};
use reft_test_support::{Outcome, alone, oracle};
use reft_train::{
    Alone, Dataset, Example, IGNORE_INDEX, Learner, NextToken, Progress, Reduce, Share, Shuffle,
    StepStats, TrainConfig, Trainer,
};
use tch::{Device, Kind};

use crate::process::{run, say};

const METHODS: [(&str, f64); 3] = [("loreft", 4e-3), ("lora", 4e-3), ("full", 1e-3)];

const STEPS: usize = 50;

/// Examples of a step, of all processes.
const BATCH: usize = 8;

#[derive(Default)]
struct Losses(Vec<f64>);

impl Progress for Losses {
    fn step(&mut self, stats: &StepStats) {
        self.0.push(stats.loss);
    }
}

/// Rows of unequal lengths whose ends follow from their beginnings in part: 26 of them, so that an epoch ends within a step.
fn examples() -> Vec<Example> {
    let example = |i: i64| {
        let (prompt_length, length) = (3 + (i * 5) % 7, 6 + (i * 5) % 7 + (i * 3) % 5);
        let token = |t| if t % 2 == 0 { 5 + i % 3 } else { 3 + (i * 31 + t * 17) % 120 };
        let input_ids: Vec<i64> = (0..length).map(token).collect();
        let prompt_length = prompt_length as usize;
        let mut labels = vec![IGNORE_INDEX; prompt_length];
        labels.extend(&input_ids[prompt_length..]);
        let row = Row { input_ids, prompt_length, ..Row::default() };
        Example::of(format!("row {i}"), row, labels)
    };
    (0..26).map(example).collect()
}

/// Losses of the steps, and a sum of all trained parameters at the end.
fn train(method: &str, share: Share, reduction: &dyn Reduce) -> Outcome<(Vec<f64>, f64)> {
    let (name, lr) = METHODS.iter().find(|(name, _)| *name == method).ok_or("no such method")?;
    let model = Decoder::open(&oracle("tiny_llama"), Kind::Float, Device::Cpu)?;
    let options = match *name {
        "loreft" => MethodOptions::default().with(&RANK, 4).with(&LAYERS, [1, 3]),
        "lora" => MethodOptions::default().with(&RANK, 4),
        _ => MethodOptions::default(),
    };
    tch::manual_seed(3);
    let adapters = resolve(name, &options, model.description())?.build(&model, "tiny")?;
    let learner = Learner::new(&model, &AdapterStack::of_boxed(&adapters)?, &NextToken);
    let dataset = Dataset { train: examples(), validation: Vec::new() };
    let config = TrainConfig {
        max_steps: Some(STEPS),
        batch_size: BATCH / share.world(),
        lr: *lr,
        shuffle: Shuffle::Plain,
        seed: 5,
        ..TrainConfig::default()
    };
    let mut losses = Losses::default();
    let trainer = Trainer::new(&learner, &dataset, config)?;
    trainer.sharing(share, reduction).run(&mut losses, &AtomicBool::new(false))?;
    let sums = learner.parameters();
    let sums = sums.iter().map(|p| p.tensor.detach().sum(Kind::Double).double_value(&[]));
    Ok((losses.0, sums.sum()))
}

/// The task of a process that the test below has started: prints its losses and the sum of its trained parameters, to the last bit.
pub fn act(method: &str, group: &ProcessGroup) -> Outcome {
    tch::set_num_threads(1);
    let (losses, sum) = train(method, group.share(), group)?;
    let numbers: Vec<String> = losses.iter().chain([&sum]).map(|x| format!("{x:?}")).collect();
    say(numbers.join(" "));
    Ok(())
}

/// The output of the processes of a run, which is the same for all.
fn shared(method: &str, world: usize) -> Outcome<Vec<f64>> {
    let (processes, mut said) = (run(&format!("train {method}"), world)?, Vec::new());
    for process in &processes {
        assert_eq!(process.says()?, "here");
        said.push(process.says()?);
    }
    assert!(said.iter().all(|other| *other == said[0]), "{said:?}");
    said[0].split(' ').map(|number| Ok(number.parse()?)).collect()
}

#[test]
fn two_and_four_processes_train_as_one_with_the_whole_batch() -> Outcome {
    let _alone = alone();
    for (method, _) in METHODS {
        let (whole, _) = train(method, Share::WHOLE, &Alone)?;
        assert!(whole[STEPS - 1] < 0.9 * whole[0], "{method} learns: {whole:?}");
        for world in [2, 4] {
            let found = shared(method, world)?;
            for (step, (found, whole)) in found.iter().zip(&whole).enumerate() {
                // f32, whose sums are taken in another order; a difference grows with the steps
                let tolerance = if step < 5 { 1e-5 } else { 1e-3 };
                let difference = ((found - whole) / whole).abs();
                assert!(
                    difference < tolerance,
                    "{method}, {world} processes, step {}: {found} and {whole}",
                    step + 1
                );
            }
            let again = shared(method, world)?;
            assert_eq!(found, again, "{method}: two runs of {world} processes are the same bits");
        }
    }
    Ok(())
}
