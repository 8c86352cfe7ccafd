//! The tiny model, its recorded batch, and new adapters of it.

use reft_methods::{MethodOptions, resolve};
use reft_models::{Adapter, Decoder, Model, Row};
use reft_test_support::{Outcome, oracle, own_tokens, tensors};
use reft_train::Example;
use tch::{Device, Kind};

pub fn tiny_llama() -> Outcome<Decoder> {
    Ok(Decoder::open(&oracle("tiny_llama"), Kind::Float, Device::Cpu)?)
}

/// Recorded rows, the last tokens of each to be learned.
pub fn tiny_examples() -> Outcome<Vec<Example>> {
    let io = tensors("tiny_io.safetensors")?;
    let rows = own_tokens(&io["input_ids"], &io["attention_mask"])?.into_iter().enumerate();
    let example = |(i, input_ids): (usize, Vec<i64>)| {
        let prompt_length = input_ids.len() - 4;
        let labels = input_ids.iter().enumerate();
        let labels = labels.map(|(t, id)| if t < prompt_length { -100 } else { *id }).collect();
        Example::of(i.to_string(), Row { input_ids, prompt_length, ..Row::default() }, labels)
    };
    Ok(rows.map(example).collect())
}

/// A new adapter of a method, or several of methods joined with `+`.
pub fn adapters(
    method: &str,
    options: &MethodOptions,
    model: &dyn Model,
) -> reft_methods::Result<Vec<Box<dyn Adapter>>> {
    resolve(method, options, model.description())?.build(model, "tiny_llama")
}
