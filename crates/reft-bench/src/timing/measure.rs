use std::ops::ControlFlow;
use std::time::Instant;

use reft_core::random_columns;
use reft_methods::{Method, Methods, numel};
use reft_models::{AdapterStack, GenerationConfig, Model, Row, generate};
use reft_train::{Dataset, Example, Learner, NextToken, Shuffle, Step, TrainConfig, Trainer};
use serde::{Deserialize, Serialize};
use tch::{Cuda, Device, Kind};

use crate::Result;
use crate::machine::peak_memory;
use crate::timing::case::{TimingCase, refused};

/// The measurements of one process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Seconds of steps on rows that were not seen before.
    pub first_epoch: Vec<f64>,
    /// Seconds of steps on rows whose frozen part is kept; `None` if nothing can be kept or reuse is off.
    pub later_epochs: Option<Vec<f64>>,
    /// The process's peak memory up to the end of training, where the system reports it.
    pub peak_memory_bytes: Option<u64>,
    /// Memory of the GPU in use at the end, libtorch's own cache included. The caller fills it in.
    pub device_memory_bytes: Option<u64>,
    /// Memory of the frozen weights on the device.
    pub weight_bytes: u64,
    /// Trained parameters.
    pub trainable_parameters: i64,
    /// Seconds of the method's orthonormal map, forward and backward, if it has one. Every step includes it once.
    pub map_seconds: Option<Vec<f64>>,
    /// Times of each generation; empty if none was asked for.
    pub generation: Vec<GenerationSeconds>,
}

/// The times of generating replies to one batch of prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GenerationSeconds {
    /// Until the first token.
    pub prefill: f64,
    /// Each token after it, for all rows at once.
    pub decode_per_token: f64,
}

/// Number of timed generations, after one untimed.
const GENERATIONS: usize = 3;

/// Number of timed runs of the orthonormal map, after one untimed.
const MAPS: usize = 9;

/// So small that training changes no weight noticeably.
const LR: f64 = 1e-6;

/// Attempts at a step that overflows f16: the loss scale is halved each time, and starts at 65,536.
const ATTEMPTS: usize = 20;

/// Times a case with the trainer of `reft train`. Call it in its own process: the peak memory is the process's.
///
/// The data are `1 + steps` batches, taken in order for one epoch, and for a second one if rows are kept. The first step of each epoch is
/// a warm-up and does not count.
///
/// # Errors
/// Errors of [`TimingCase::check`], of the model and of the method.
pub fn measure(case: &TimingCase, device: Device) -> Result<Measured> {
    let config = case.model_config()?;
    let model = config.describe();
    case.check(&model)?;
    tch::manual_seed(0);
    let train = case.examples(1 + case.steps, model.vocab_size);
    let decoder = case.decoder(config, device)?;
    let adapters = case.adapters(&decoder)?;
    let stack = AdapterStack::of_boxed(&adapters)?;
    let dataset = Dataset { train, validation: Vec::new() };
    let config = TrainConfig {
        epochs: Some(2),
        batch_size: case.batch_size,
        lr: LR,
        shuffle: Shuffle::None,
        reuse: case.reuse,
        checkpoint_activations: case.checkpoint_activations,
        ..TrainConfig::default()
    };
    let learner = Learner::new(&decoder, &stack, &NextToken);
    let (_, keeps) = case.reach(&learner);
    let mut trainer = Trainer::new(&learner, &dataset, config)?;
    let first_epoch = epoch_seconds(&mut trainer, 0, device)?;
    let later_epochs = keeps.then(|| epoch_seconds(&mut trainer, 1, device)).transpose()?;
    drop(trainer);
    let peak_memory_bytes = peak_memory();
    let methods = case.methods(&model)?;
    let map_seconds = methods.as_ref().map(|methods| map_seconds(methods, device)).transpose()?;
    let used = if methods.is_some() { &stack } else { &AdapterStack::EMPTY }; // the floor is the base model
    Ok(Measured {
        first_epoch,
        later_epochs,
        peak_memory_bytes,
        device_memory_bytes: None,
        weight_bytes: decoder.weight_bytes() as u64,
        trainable_parameters: numel(&used.parameters()),
        map_seconds: map_seconds.flatten(),
        generation: generation_seconds(case, &decoder, used, &dataset.train)?,
    })
}

/// Seconds of each step of an epoch but the first.
fn epoch_seconds(trainer: &mut Trainer, epoch: usize, device: Device) -> Result<Vec<f64>> {
    let steps = trainer.steps_per_epoch();
    let mut seconds = Vec::with_capacity(steps);
    for step in epoch * steps..(epoch + 1) * steps {
        let mut taken = None;
        for _ in 0..ATTEMPTS {
            synchronize(device);
            let started = Instant::now();
            let micro_batches = trainer.micro_batches(step)?;
            let outcome = trainer.step(&micro_batches)?;
            synchronize(device);
            if let Step::Taken(_) = outcome {
                taken = Some(started.elapsed().as_secs_f64());
                break;
            }
        }
        seconds.push(taken.ok_or_else(|| {
            refused("kind", "f16, in which the gradients overflow".into(), "f32 or bf16".into())
        })?);
    }
    Ok(seconds.split_off(1))
}

fn generation_seconds(
    case: &TimingCase,
    model: &dyn Model,
    stack: &AdapterStack,
    examples: &[Example],
) -> Result<Vec<GenerationSeconds>> {
    if case.new_tokens == 0 {
        return Ok(Vec::new());
    }
    let prompt =
        |example: &Example| Row::prompt(example.row().input_ids[..case.prompt_length].to_vec());
    let rows: Vec<Row> = examples[..case.batch_size].iter().map(prompt).collect();
    let config =
        GenerationConfig { max_new_tokens: case.new_tokens, ..GenerationConfig::default() };
    let once = || {
        let mut tokens = Vec::with_capacity(case.new_tokens);
        let started = Instant::now();
        generate(model, stack, &rows, &config, &mut |row, _| {
            if row == 0 {
                tokens.push(started.elapsed().as_secs_f64());
            }
            ControlFlow::Continue(())
        })?;
        let (prefill, last) = (tokens[0], tokens[tokens.len() - 1]);
        let decode_per_token = (last - prefill) / (tokens.len() - 1) as f64;
        Ok(GenerationSeconds { prefill, decode_per_token })
    };
    let seconds: Result<Vec<_>> = (0..=GENERATIONS).map(|_| once()).collect();
    Ok(seconds?.split_off(1))
}

/// Seconds of the orthonormal map, forward and backward, for all interventions at once, as in a step; `None` if the methods have no rotations.
///
/// # Errors
/// Errors of the map.
fn map_seconds(methods: &Methods, device: Device) -> Result<Option<Vec<f64>>> {
    let Some((kind, [n, d, r])) = methods.iter().find_map(Method::rotations) else {
        return Ok(None);
    };
    let start = random_columns(n, d, r, device);
    let map = kind.starting_at(&start).map_err(reft_models::Error::from)?;
    let once = || {
        synchronize(device);
        let started = Instant::now();
        map.columns().sum(Kind::Float).backward();
        synchronize(device);
        started.elapsed().as_secs_f64()
    };
    Ok(Some((0..=MAPS).map(|_| once()).skip(1).collect()))
}

/// Waits until a device is idle.
fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

#[cfg(test)]
mod tests {
    use reft_methods::{MethodOptions, resolve};
    use reft_models::DecoderConfig;

    use super::*;

    #[test]
    fn only_a_method_with_a_rotation_has_a_map()
    -> std::result::Result<(), Box<dyn std::error::Error>> {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/tiny_llama");
        let model = DecoderConfig::open(model.as_ref())?.describe();
        for (method, has_map) in
            [("loreft", true), ("noreft", false), ("direft", false), ("lora", false)]
        {
            let methods = resolve(method, &MethodOptions::default(), &model)?;
            let seconds = map_seconds(&methods, Device::Cpu)?;
            assert_eq!(seconds.is_some(), has_map, "{method}");
            assert!(seconds.is_none_or(|s| s.len() == MAPS && s.iter().all(|&s| s > 0.0)));
        }
        Ok(())
    }
}
