//! A training step: the frozen floor, LoReFT at both ends of the prompt and at its last token, and LoRA. Frozen work is not cached, so that
//! every step does the same; `reft bench` also times steps with cached frozen work, and whole models.
//!
//! `cargo bench --workspace --profile dev --bench step`

mod model_shape;
mod timing;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use reft_bench::FloorAdapter;
use reft_methods::{MethodOptions, POSITIONS, RANK, SHARE_WEIGHTS, resolve};
use reft_models::{Adapter, AdapterStack, Model, Row};
use reft_train::{Dataset, Example, IGNORE_INDEX, Learner, NextToken, Step, TrainConfig, Trainer};
use tch::{Device, Tensor};
use timing::timed;

const LAYERS: usize = 4;
const BATCH: usize = 8;
const RESPONSE: usize = 8;

fn dataset(prompt: usize, model: &dyn Model) -> Dataset {
    let example = |row: usize| {
        let input_ids = model_shape::tokens(row as i64, prompt + RESPONSE, model);
        let mut labels = vec![IGNORE_INDEX; prompt];
        labels.extend(&input_ids[prompt..]);
        let row = Row { input_ids, prompt_length: prompt, ..Row::default() };
        Example::of("timed", row, labels)
    };
    Dataset { train: (0..BATCH).map(example).collect(), validation: Vec::new() }
}

fn adapters(method: &str, positions: &str, model: &dyn Model) -> Vec<Box<dyn Adapter>> {
    if method == "floor" {
        return vec![Box::new(FloorAdapter::new(model.device()))];
    }
    let mut options = MethodOptions::default().with(&RANK, 8);
    if !positions.is_empty() {
        options = options.with(&POSITIONS, positions).with(&SHARE_WEIGHTS, true);
    }
    let methods = resolve(method, &options, model.description());
    methods.and_then(|methods| methods.build(model, "")).expect("invariant: rank 8 fits")
}

fn step(criterion: &mut Criterion) {
    let device = Device::cuda_if_available();
    let decoder = model_shape::decoder(LAYERS, device);
    let mut group = timing::group(criterion, "step");
    for prompt in [32, 120] {
        let dataset = dataset(prompt, &decoder);
        group.throughput(Throughput::Elements((BATCH * (prompt + RESPONSE)) as u64)); // tokens per second
        for (method, positions) in
            [("floor", ""), ("loreft", "f7+l7"), ("loreft", "l1"), ("lora", "")]
        {
            let adapters = adapters(method, positions, &decoder);
            let stack = AdapterStack::of_boxed(&adapters).expect("invariant: there is only one");
            let learner = Learner::new(&decoder, &stack, &NextToken);
            let config = TrainConfig {
                max_steps: Some(1_000_000),
                lr: 1e-6,
                reuse: false,
                ..TrainConfig::default()
            };
            let mut trainer = Trainer::new(&learner, &dataset, config)
                .expect("invariant: a frozen model and a method that trains");
            let batches = trainer.micro_batches(0).expect("invariant: rows are not empty");
            let name = [method, positions].join("-");
            let name = name.trim_end_matches('-');
            let shape = format!("b{BATCH}_p{prompt}_s{RESPONSE}_d576_l{LAYERS}_r8");
            group.bench_function(format!("{name}/{device:?}/f32/{shape}"), |b| {
                b.iter_custom(|n| {
                    timed(device, n, || match trainer.step(&batches) {
                        Ok(Step::Taken(stats)) => Tensor::from(stats.loss),
                        other => panic!("a step in f32 is taken: {other:?}"),
                    })
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
