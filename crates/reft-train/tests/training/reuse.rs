//! Frozen work that is done once gives the numbers of the plain path.

use std::sync::atomic::AtomicBool;

use reft_core::{InterventionConfig, Method};
use reft_models::{Adapter, BaseModel, Component, Decoder, Mode, ReftAdapter, ReftConfig};
use reft_train::{
    Batch, Dataset, FrozenStore, ReuseConfig, Shuffle, Silent, TrainConfig, Trainer, evaluate,
    loss_sum,
};
use tch::{Kind, Tensor};

use crate::tiny_llama::{TestResult, alone, decoder, examples};

fn reft(
    decoder: &Decoder,
    method: Method,
    (layers, component): (&[usize], Component),
    positions: &str,
) -> Result<ReftAdapter, Box<dyn std::error::Error>> {
    tch::manual_seed(3);
    let intervention = InterventionConfig {
        init: Some(reft_core::Init::Reference),
        ..InterventionConfig::new(method, 4)
    };
    let base = BaseModel::of(decoder.config(), "tiny");
    let config = ReftConfig {
        component,
        ..ReftConfig::new(&intervention, layers.to_vec(), positions.parse()?, base)
    };
    Ok(ReftAdapter::new(config, decoder)?)
}

/// Loss, and gradients of all parameters.
fn loss_and_gradients(
    decoder: &Decoder,
    adapter: &dyn Adapter,
    batch: &Batch,
    store: Option<&mut FrozenStore>,
) -> reft_train::Result<(f64, Vec<Tensor>)> {
    let parameters = adapter.parameters();
    for parameter in &parameters {
        parameter.tensor.shallow_clone().zero_grad();
    }
    let loss = loss_sum(decoder, &[adapter], batch, Mode::Train, store)?;
    loss.backward();
    let gradients = parameters.iter().map(|parameter| parameter.tensor.grad().copy()).collect();
    Ok((loss.double_value(&[]), gradients))
}

/// The largest difference, as a share of the largest entry.
fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    let largest = expected.abs().max().double_value(&[]);
    (found - expected).abs().max().double_value(&[]) / largest
}

fn assert_same(found: &(f64, Vec<Tensor>), expected: &(f64, Vec<Tensor>), what: &str) {
    let loss = (found.0 - expected.0).abs() / expected.0;
    assert!(loss < 1e-6, "{what}: loss {} {}", found.0, expected.0); // f32, sums in another order
    for (found, expected) in found.1.iter().zip(&expected.1) {
        assert!(expected.abs().max().double_value(&[]) > 1e-3, "{what}: the test has no power");
        let difference = relative(found, expected);
        assert!(difference < 1e-5, "{what}: gradients differ by {difference:e}"); // f32; 2e-6 was seen
    }
}

#[test]
fn every_method_and_place_gives_the_plain_loss_and_gradients() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let batch = Batch::collate(&examples(5), 0)?;
    let mut kept = 0;
    for &method in Method::ALL {
        for positions in ["l1", "l2", "f2+l2"] {
            for (layers, component) in [
                (&[0, 1, 2, 3][..], Component::BlockOutput),
                (&[2], Component::BlockInput),
                (&[1, 3], Component::AttentionOutput),
                (&[3], Component::BlockOutput),
                (&[0], Component::MlpOutput),
            ] {
                let adapter = reft(&decoder, method, (layers, component), positions)?;
                let what = format!("{method} {layers:?} {component} {positions}");
                let plain = loss_and_gradients(&decoder, &adapter, &batch, None)?;
                let mut store = FrozenStore::new(ReuseConfig::default());
                for round in ["computed", "kept"] {
                    let what = format!("{what}, {round}");
                    let reused = loss_and_gradients(&decoder, &adapter, &batch, Some(&mut store))?;
                    assert_same(&reused, &plain, &what);
                }
                let is_kept = positions.starts_with('l')
                    || layers[0] > 0
                    || component == Component::BlockOutput;
                assert_eq!(store.len(), if is_kept { 5 } else { 0 }, "{what}");
                kept += store.len();
            }
        }
    }
    assert!(kept > 0);
    Ok(())
}
