//! The tiny model, its oracle files, and examples for it.

use reft_core::{InterventionConfig, MapKind, Method};
use reft_methods::{ReftAdapter, ReftConfig};
use reft_models::{Adapter, AdapterStack, BaseModel, Decoder, Model, Row};
pub use reft_test_support::{
    Outcome as TestResult, alone, oracle as oracle_path, relative_difference,
};
use reft_train::{Example, IGNORE_INDEX, Learner, NextToken};
use tch::{Device, Kind};

pub fn decoder(kind: Kind) -> reft_models::Result<Decoder> {
    Decoder::open(&oracle_path("tiny_llama"), kind, Device::Cpu)
}

/// An adapter of rank 4 at layers 1 and 3, on the first two and last two prompt tokens.
pub fn config(decoder: &Decoder, method: Method, map: MapKind, dropout: f64) -> ReftConfig {
    let intervention =
        InterventionConfig { orthonormal_map: map, dropout, ..InterventionConfig::new(method, 4) };
    let positions = "f2+l2".parse().expect("invariant: well formed");
    let base = BaseModel::of(decoder.description(), "tiny");
    ReftConfig {
        share_weights: true,
        ..ReftConfig::new(&intervention, vec![1, 3], positions, base)
    }
}

pub fn adapter(
    decoder: &Decoder,
    map: MapKind,
    dropout: f64,
    seed: i64,
) -> reft_models::Result<ReftAdapter> {
    tch::manual_seed(seed);
    ReftAdapter::new(config(decoder, Method::Loreft, map, dropout), decoder)
}

/// An adapter that learns next tokens.
pub fn learner<'a>(model: &'a dyn Model, adapter: &'a dyn Adapter) -> Learner<'a> {
    Learner::new(model, &AdapterStack::one(adapter), &NextToken)
}

/// `n` examples of unequal lengths and prompts; half of the completion's tokens follow from the prompt, so there is something to learn.
pub fn examples(n: usize) -> Vec<Example> {
    (0..n as i64)
        .map(|i| {
            let (prompt_length, length) = (3 + (i * 5) % 7, 6 + (i * 5) % 7 + (i * 3) % 5);
            let input_ids: Vec<i64> = (0..length)
                .map(|t| if t % 2 == 0 { 5 + i % 3 } else { 3 + (i * 31 + t * 17) % 120 })
                .collect();
            let prompt_length = prompt_length as usize;
            let mut labels = vec![IGNORE_INDEX; prompt_length];
            labels.extend(&input_ids[prompt_length..]);
            let row = Row { input_ids, prompt_length, ..Row::default() };
            Example::of(format!("row {}", i + 1), row, labels)
        })
        .collect()
}
