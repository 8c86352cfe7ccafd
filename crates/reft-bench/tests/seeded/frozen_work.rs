//! Cached frozen work and activation checkpointing give the plain path's loss and gradients with every method.

use reft_core::Parameter;
use reft_methods::{MethodOptions, method_names};
use reft_models::AdapterStack;
use reft_test_support::{Outcome, alone};
use reft_train::{Dataset, Learner, NextToken, Shuffle, Step, TrainConfig, Trainer};
use serde_json::json;
use tch::Tensor;

use crate::tiny_model::{adapters, tiny_examples, tiny_llama};

/// Losses, and gradients by name.
type Numbers = (Vec<f64>, Vec<(String, Tensor)>);

/// Loss and gradients of two steps; the second uses the frozen work that the first has cached. The adapter is moved away from its start,
/// where many gradients are 0.
fn losses_and_gradients(
    method: &str,
    options: &MethodOptions,
    config: &TrainConfig,
) -> Outcome<Numbers> {
    let decoder = tiny_llama()?;
    tch::manual_seed(4);
    let adapters = adapters(method, options, &decoder)?;
    let stack = AdapterStack::of_boxed(&adapters)?;
    nudge(&stack.parameters());
    let dataset = Dataset { train: tiny_examples()?, validation: Vec::new() };
    let mut losses = Vec::new();
    let learner = Learner::new(&decoder, &stack, &NextToken);
    let mut trainer = Trainer::new(&learner, &dataset, config.clone())?;
    for step in 0..2 {
        let micro_batches = trainer.micro_batches(step)?;
        let Step::Taken(stats) = trainer.step(&micro_batches)? else { panic!("f32 overflowed") };
        losses.push(stats.loss);
    }
    drop(trainer);
    let parameters = stack.parameters().into_iter();
    Ok((losses, parameters.map(|p| (p.name, p.tensor.grad().copy())).collect()))
}

fn nudge(parameters: &[Parameter]) {
    tch::no_grad(|| {
        for parameter in parameters {
            let mut tensor = parameter.tensor.shallow_clone();
            let noise = tensor.randn_like() * 0.02;
            let _nudged = tensor.g_add_(&noise);
        }
    });
}

#[test]
fn every_method_has_the_plain_loss_and_gradients() -> Outcome {
    let _guard = alone();
    let plain = TrainConfig {
        reuse: false,
        batch_size: 2, // of three rows: a step of two batches
        grad_accum: 2,
        lr: 1e-6, // the first step changes the parameters by rounding only
        max_grad_norm: 0.0,
        shuffle: Shuffle::None,
        max_steps: Some(2),
        ..TrainConfig::default()
    };
    let ways = [(true, false), (false, true), (true, true)];
    let mut cases: Vec<(String, serde_json::Value)> =
        method_names().into_iter().map(|method| (method.to_owned(), json!({}))).collect();
    cases.extend([
        ("loreft".to_owned(), json!({"positions": "l2", "layers": [1, 2]})),
        ("loreft".to_owned(), json!({"positions": "l1", "orthonormal_map": "qr"})),
        ("lora".to_owned(), json!({"layers": [2, 3]})),
        ("red".to_owned(), json!({"layers": [3]})),
        ("prefix".to_owned(), json!({"encoder_hidden_size": 12})),
        ("loreft+lora".to_owned(), json!({"layers": [2, 3], "positions": "l1"})),
    ]);
    for (method, options) in cases {
        let what = format!("{method} {options}");
        let options: MethodOptions = serde_json::from_value(options)?;
        let expected = losses_and_gradients(&method, &options, &plain)?;
        for (reuse, checkpoint_activations) in ways {
            let config = TrainConfig { reuse, checkpoint_activations, ..plain.clone() };
            let what = format!("{what}, reuse {reuse}, checkpointing {checkpoint_activations}");
            let found = losses_and_gradients(&method, &options, &config)?;
            for (found, expected) in found.0.iter().zip(&expected.0) {
                assert!((found - expected).abs() < 2e-6 * expected, "{what}: {found} {expected}");
            }
            for ((name, found), (_, expected)) in found.1.iter().zip(&expected.1) {
                let largest = expected.abs().max().double_value(&[]);
                let difference = (found - expected).abs().max().double_value(&[]) / largest;
                // f32, and parameters that AdamW has moved by 1e-6
                assert!(
                    largest > 1e-5 && difference < 1e-4,
                    "{what}, {name}: {difference:e} of {largest:e}"
                );
            }
        }
    }
    Ok(())
}
