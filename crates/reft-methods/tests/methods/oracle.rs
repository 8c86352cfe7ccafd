//! Recorded batches as examples, adapters of them, and comparisons with the recordings.

use std::path::Path;

use reft_methods::{MethodOptions, resolve};
use reft_models::{Adapter, AdapterStack, Decoder, Mode, Model, PaddingSide, Row};
use reft_test_support::own_tokens;
pub use reft_test_support::{
    GRADIENTS, LOGITS, Outcome, Tensors, assert_close, folders as names_in,
    largest_difference as difference, oracle as path, tensors,
};
use reft_train::{AdamW, Example, Learner, NextToken};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

/// Losses up to 7 through 20 steps of AdamW.
pub const TRAJECTORY: f64 = 1e-4;

pub fn json(path: &Path) -> Outcome<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}

/// A model of `tests/oracle`.
pub fn model(name: &str) -> Outcome<Decoder> {
    Ok(Decoder::open(&path(name), Kind::Float, Device::Cpu)?)
}

pub fn tiny_llama() -> Outcome<Decoder> {
    model("tiny_llama")
}

/// The recorded batch of a model, with labels.
pub fn examples(model: &str, labels: &Tensor) -> Outcome<Vec<Example>> {
    let file = if model == "tiny_llama" { "tiny_io".into() } else { format!("{model}/io") };
    let io = tensors(&format!("{file}.safetensors"))?;
    let mask = &io["attention_mask"];
    let own = own_tokens(&io["input_ids"], mask)?.into_iter().zip(own_tokens(labels, mask)?);
    let example = |(i, (input_ids, labels)): (usize, (Vec<i64>, Vec<i64>))| {
        let prompt_length = labels.iter().take_while(|label| **label == -100).count();
        let row = Row { input_ids, prompt_length, ..Row::default() };
        Example::of(i.to_string(), row, labels)
    };
    Ok(own.enumerate().map(example).collect())
}

/// The batch that most recordings share.
pub fn tiny_examples() -> Outcome<Vec<Example>> {
    examples("tiny_llama", &tensors("tiny_io.safetensors")?["labels"])
}

/// A new adapter of a method, or of several joined with `+`.
pub fn new_adapter(
    method: &str,
    options: &MethodOptions,
    model: &dyn Model,
) -> reft_methods::Result<AdapterStack<'static>> {
    kept(resolve(method, options, model.description())?.build(model, "tiny_llama")?)
}

/// The adapter in a directory.
pub fn load_adapter(dir: &Path, model: &dyn Model) -> reft_methods::Result<AdapterStack<'static>> {
    kept(reft_methods::load_adapters(dir, model)?)
}

/// Adapters that are there for as long as the tests run.
fn kept(adapters: Vec<Box<dyn Adapter>>) -> reft_methods::Result<AdapterStack<'static>> {
    Ok(AdapterStack::of_boxed(Box::leak(adapters.into_boxed_slice()))?)
}

/// The logits of every row's own tokens, virtual ones included: `[t, v]` each.
pub fn logits(
    model: &dyn Model,
    stack: &AdapterStack,
    examples: &[Example],
    padding: PaddingSide,
) -> Outcome<Vec<Tensor>> {
    let rows = examples.iter().map(|example| example.row().clone()).collect();
    Ok(stack.logits(model, rows, padding)?)
}

/// The logits of the model without any method.
pub fn base_logits(model: &dyn Model, examples: &[Example]) -> Outcome<Vec<Tensor>> {
    logits(model, &AdapterStack::EMPTY, examples, PaddingSide::Right)
}

/// Compares logits of every row with recorded ones, `[b, t, v]` with padding on the right.
#[track_caller]
pub fn assert_logits(what: &str, found: &[Tensor], expected: &Tensor) {
    for (i, found) in found.iter().enumerate() {
        let expected = expected.select(0, i as i64).narrow(0, 0, found.size()[0]);
        assert_close(&format!("{what}: logits of row {i}"), found, &expected, LOGITS);
    }
}

/// The mean loss of a batch, differentiable.
pub fn loss(model: &dyn Model, stack: &AdapterStack, examples: &[Example]) -> Outcome<Tensor> {
    Ok(Learner::new(model, stack, &NextToken).loss(examples, Mode::Train)?)
}

/// Compares the gradient of every parameter with the recorded one, `grad.{name}`.
pub fn assert_gradients(
    what: &str,
    model: &dyn Model,
    stack: &AdapterStack,
    examples: &[Example],
    recorded: &dyn Fn(&str) -> Tensor,
) -> Outcome {
    let parameters = stack.parameters();
    for parameter in &parameters {
        parameter.tensor.shallow_clone().zero_grad();
    }
    loss(model, stack, examples)?.backward();
    for parameter in &parameters {
        let expected = recorded(&parameter.name);
        let scale = expected.abs().max();
        assert!(scale.double_value(&[]) > 1e-6, "{what}: {} has no gradient", parameter.name);
        let (found, expected) = (parameter.tensor.grad() / &scale, expected / &scale);
        let name = format!("{what}: gradient of {}", parameter.name);
        assert_close(&name, &found, &expected, GRADIENTS);
    }
    Ok(())
}

/// Trains as the recording did: the loss before each of 20 steps and after the last.
pub fn assert_trajectory(
    what: &str,
    model: &dyn Model,
    stack: &AdapterStack,
    examples: &[Example],
    recording: &Value,
) -> Outcome {
    let lr = recording["lr"].as_f64().ok_or("no lr")?;
    let expected = recording["trajectory"].as_array().ok_or("no trajectory")?;
    assert_eq!(expected.len(), 21);
    let mut optimizer = AdamW::new(stack.parameters(), 0.0);
    for (step, expected) in expected.iter().enumerate() {
        optimizer.zero_grad();
        let loss = loss(model, stack, examples)?;
        let (found, expected) = (loss.double_value(&[]), expected.as_f64().ok_or("no loss")?);
        let difference = (found - expected).abs();
        assert!(
            difference < TRAJECTORY,
            "{what}: loss {found} in step {step}, expected {expected}"
        );
        if step < 20 {
            loss.backward();
            optimizer.step(lr);
        }
    }
    Ok(())
}

/// The recorded tensors under a prefix, with their names in files.
pub fn recorded(tensors: &Tensors, prefix: &str) -> Tensors {
    let own = |(name, tensor): (&String, &Tensor)| {
        let name = name.strip_prefix(prefix)?.replace(".default", "");
        let name = match name.as_str() {
            "prompt_encoder.embedding.weight" => "prompt_embeddings".to_owned(),
            _ => name,
        };
        Some((name, tensor.shallow_clone()))
    };
    tensors.iter().filter_map(own).collect()
}

/// [`reft_test_support::disturb`] of a stack's trained tensors.
pub fn disturb(stack: &AdapterStack, seed: i64) {
    let parameters = stack.parameters().into_iter().map(|p| (p.tensor, !p.weight_decay));
    reft_test_support::disturb(parameters, seed);
}
