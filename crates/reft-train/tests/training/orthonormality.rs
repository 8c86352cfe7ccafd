//! R stays orthonormal whatever training does.

use std::sync::atomic::AtomicBool;

use reft_core::MapKind;
use reft_models::{Adapter, Decoder, ReftAdapter};
use reft_train::{Dataset, ScheduleKind, Silent, TrainConfig, Trainer};
use tch::Kind;

use crate::tiny_llama::{TestResult, adapter, alone, decoder, examples};

/// f32 rounding of products of 64 numbers: measured 5e-7, and it must not grow with the number of steps.
const LIMIT: f64 = 1e-5;

fn train(decoder: &Decoder, adapter: &mut ReftAdapter, steps: usize) -> reft_train::Result<()> {
    let options = TrainConfig {
        max_steps: Some(steps),
        batch_size: 2,
        lr: 1e-2,
        schedule: ScheduleKind::Constant,
        weight_decay: 0.1,
        ..TrainConfig::default()
    };
    let dataset = Dataset { train: examples(8), validation: Vec::new() };
    Trainer::new(decoder, adapter, &dataset, options)?.run(&mut Silent, &AtomicBool::new(false))?;
    Ok(())
}

fn error(adapter: &ReftAdapter) -> f64 {
    adapter.interventions().orthonormality_error().unwrap_or(f64::NAN)
}

fn check(map: MapKind, kind: Kind, steps: usize) -> TestResult {
    let _alone = alone();
    let decoder = decoder(kind)?;
    let mut adapter = adapter(&decoder, map, 0.0, 1)?;
    let start = adapter.interventions().tensors();
    train(&decoder, &mut adapter, steps)?;
    assert!(error(&adapter) < LIMIT, "after {steps} steps: {:e}", error(&adapter));
    let moved = (&adapter.interventions().tensors()[0]["rotation"] - &start[0]["rotation"])
        .abs()
        .max()
        .double_value(&[]);
    assert!(moved > 0.1, "the test has no power: R moved by {moved}");

    let directory = tempfile::tempdir()?;
    adapter.save(directory.path())?;
    let mut loaded = ReftAdapter::load(directory.path(), &decoder)?.into_trainable()?;
    assert!(error(&loaded) < LIMIT, "after loading: {:e}", error(&loaded));
    train(&decoder, &mut loaded, 100)?;
    assert!(error(&loaded) < LIMIT, "100 steps after loading: {:e}", error(&loaded));
    Ok(())
}

#[test]
fn householder_stays_orthonormal_for_a_thousand_steps_and_after_loading() -> TestResult {
    check(MapKind::Householder, Kind::Float, 1000)
}

#[test]
fn qr_stays_orthonormal_for_a_thousand_steps_and_after_loading() -> TestResult {
    check(MapKind::Qr, Kind::Float, 1000)
}

#[test]
fn householder_stays_orthonormal_on_a_bf16_model() -> TestResult {
    check(MapKind::Householder, Kind::BFloat16, 200)
}

#[test]
fn qr_stays_orthonormal_on_a_bf16_model() -> TestResult {
    check(MapKind::Qr, Kind::BFloat16, 200)
}
