//! The recorded numbers of other implementations, and how closeness is asserted.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use reft_methods::{MethodOptions, resolve};
use reft_models::{
    Adapter, AdapterStack, Decoder, Hooks, Layout, Mode, Model, PaddingSide, Row, load_safetensors,
};
use reft_train::{AdamW, Example, Learner, NextToken};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

pub type Outcome<T = ()> = Result<T, Box<dyn Error>>;
pub type Tensors = BTreeMap<String, Tensor>;

/// The same sums in another order, f32 with |logits| up to 10: measured 6e-6.
pub const LOGITS: f64 = 2e-5;
/// Gradients, relative to the largest number of each tensor.
pub const GRADIENTS: f64 = 1e-4;
/// Losses up to 7 through 20 steps of AdamW.
pub const TRAJECTORY: f64 = 1e-4;

/// A file or directory of `tests/oracle` at the root of the repository.
pub fn path(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle")).join(name)
}

pub fn tensors(name: &str) -> Outcome<Tensors> {
    Ok(load_safetensors(&path(name))?)
}

pub fn json(path: &Path) -> Outcome<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}

/// Names of the folders in a folder.
pub fn names_in(dir: &Path) -> Outcome<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.path().is_dir() {
            names.push(entry.file_name().into_string().map_err(|name| format!("{name:?}"))?);
        }
    }
    names.sort();
    Ok(names)
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
    let example = |i: i64| {
        let length = io["attention_mask"].select(0, i).sum(Kind::Int64).int64_value(&[]);
        let cut = |x: &Tensor| Vec::<i64>::try_from(x.select(0, i).narrow(0, 0, length));
        let (input_ids, labels) = (cut(&io["input_ids"])?, cut(labels)?);
        let prompt_length = labels.iter().take_while(|label| **label == -100).count();
        let row = Row { input_ids, prompt_length, ..Row::default() };
        Ok(Example::of(i.to_string(), row, labels))
    };
    (0..labels.size()[0]).map(example).collect()
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
    let layout = stack.layout(Layout::new(rows, padding)?);
    let h = hidden_states(model, &layout, &mut stack.hooks(&layout, Mode::Eval)?)?;
    let logits = model.logits(&h);
    let own = |row: usize| {
        let columns = layout.columns(row);
        logits.select(0, row as i64).narrow(0, columns.start as i64, columns.len() as i64)
    };
    Ok((0..examples.len()).map(own).collect())
}

/// Hidden states of a whole batch, without a graph.
pub fn hidden_states(
    model: &dyn Model,
    layout: &Layout,
    hooks: &mut dyn Hooks,
) -> reft_models::Result<Tensor> {
    let ids = layout.input_ids(model.device());
    tch::no_grad(|| model.hidden_states(&ids, &layout.whole(), None, hooks))
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
    let learner = Learner::new(model, stack, &NextToken);
    let batch = learner.batch(examples)?;
    let sums = learner.sums(&batch, Mode::Train, None)?;
    Ok(&sums[0] / batch.n_targets() as f64)
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

/// The recording of tensors under a prefix, with the names that files use.
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

/// Fails with the largest difference, its index and both values if it is not within `tolerance`.
#[track_caller]
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size(), "{what}: shape");
    let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let difference = (&found - &expected).abs().flatten(0, -1);
    let index = difference.argmax(0, false).int64_value(&[]);
    let at = |x: &Tensor| x.flatten(0, -1).double_value(&[index]);
    let largest = at(&difference);
    assert!(
        largest <= tolerance, // NaN fails
        "{what}: {} at flat index {index}, expected {} to {tolerance:e}: off by {largest:e}",
        at(&found),
        at(&expected),
    );
}

/// The largest difference between two sets of logits.
pub fn difference(a: &[Tensor], b: &[Tensor]) -> f64 {
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| (a - b).abs().max().double_value(&[])).fold(0.0, f64::max)
}

/// Moves every parameter away from its start, so that no part of a method is multiplied by 0: the same numbers in every run.
pub fn disturb(stack: &AdapterStack, seed: i64) {
    tch::no_grad(|| {
        for (i, parameter) in stack.parameters().into_iter().enumerate() {
            let n = parameter.tensor.numel() as i64;
            let places = Tensor::arange(n, (Kind::Double, Device::Cpu)) + (1000 * seed + i as i64);
            let noise = ((places * 12.9898).sin() * 43_758.545_3).frac() * 0.15; // in ±0.15
            let noise = noise.to_kind(Kind::Float).view_as(&parameter.tensor);
            // scales and rotations stay near where they are
            let start = if parameter.weight_decay { 0.0 } else { 1.0 };
            let moved = &parameter.tensor * start + noise;
            parameter.tensor.shallow_clone().copy_(&moved);
        }
    });
}
