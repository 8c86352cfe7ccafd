//! R stays orthonormal whatever training does.

use std::sync::atomic::AtomicBool;

use reft_core::{MapKind, Parameter, random_columns};
use reft_methods::ReftAdapter;
use reft_models::{Adapter, Decoder};
use reft_train::{AdamW, Dataset, ScheduleKind, Silent, TrainConfig, Trainer};
use tch::{Device, Kind, Tensor};

use crate::tiny_llama::{TestResult, adapter, alone, decoder, examples, learner};

/// f32 rounding of products of 64 numbers: measured 5e-7, and it must not grow with the number of steps.
const LIMIT: f64 = 1e-5;

fn train(decoder: &Decoder, adapter: &ReftAdapter, steps: usize) -> reft_train::Result<()> {
    let options = TrainConfig {
        max_steps: Some(steps),
        batch_size: 2,
        lr: 1e-2,
        schedule: ScheduleKind::Constant,
        weight_decay: 0.1,
        ..TrainConfig::default()
    };
    let dataset = Dataset { train: examples(8), validation: Vec::new() };
    Trainer::new(&learner(decoder, adapter), &dataset, options)?
        .run(&mut Silent, &AtomicBool::new(false))?;
    Ok(())
}

fn error(adapter: &ReftAdapter) -> f64 {
    adapter.interventions().orthonormality_error().unwrap_or(f64::NAN)
}

fn check(map: MapKind, kind: Kind, steps: usize) -> TestResult {
    let _alone = alone();
    let decoder = decoder(kind)?;
    let adapter = adapter(&decoder, map, 0.0, 1)?;
    let start = adapter.interventions().tensors();
    train(&decoder, &adapter, steps)?;
    assert!(error(&adapter) < LIMIT, "after {steps} steps: {:e}", error(&adapter));
    let moved = (&adapter.interventions().tensors()[0]["rotation"] - &start[0]["rotation"])
        .abs()
        .max()
        .double_value(&[]);
    assert!(moved > 0.1, "the test has no power: R moved by {moved}");

    let directory = tempfile::tempdir()?;
    adapter.save(directory.path())?;
    let loaded = ReftAdapter::load(directory.path(), &decoder)?.into_trainable()?;
    assert!(error(&loaded) < LIMIT, "after loading: {:e}", error(&loaded));
    train(&decoder, &loaded, 100)?;
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
fn householder_stays_orthonormal_for_a_thousand_steps_on_a_bf16_model() -> TestResult {
    check(MapKind::Householder, Kind::BFloat16, 1000)
}

#[test]
fn qr_stays_orthonormal_for_a_thousand_steps_on_a_bf16_model() -> TestResult {
    check(MapKind::Qr, Kind::BFloat16, 1000)
}

/// How far the first step of AdamW moves R for a given gradient of R, `‖ΔR‖ / (η √(dr))`: 1 if each entry moves by η.
fn first_step(map: MapKind, gradient: &Tensor, start: &Tensor) -> Result<f64, reft_core::Error> {
    const LR: f64 = 1e-4;
    let map = map.starting_at(start)?;
    let mut adamw = AdamW::new(vec![Parameter::rotation("R", map.raw())], 0.0);
    (map.columns() * gradient).sum(Kind::Float).backward();
    adamw.step(LR);
    let moved = (map.columns() - start).norm().double_value(&[]);
    Ok(moved / LR / (start.numel() as f64).sqrt())
}

/// A reflection turns a vector by twice the angle by which the reflection's normal turns.
#[test]
fn a_step_takes_a_householder_rotation_twice_as_far_as_a_qr_one() -> TestResult {
    let _alone = alone();
    tch::manual_seed(7);
    for (d, r) in [(576, 1), (576, 4), (576, 8), (2048, 8)] {
        let start = random_columns(1, d, r, Device::Cpu);
        let gradient = Tensor::randn([1, d, r], (Kind::Float, Device::Cpu));
        let householder = first_step(MapKind::Householder, &gradient, &start)?;
        let qr = first_step(MapKind::Qr, &gradient, &start)?;
        // Exactly 2 and 1, except for the r(r + 1)/2 directions in which an orthonormal matrix cannot move, and second-order terms.
        assert!((householder - 2.0).abs() < 0.03, "d {d}, r {r}: {householder}");
        assert!((qr - 1.0).abs() < 0.03, "d {d}, r {r}: {qr}");
    }
    Ok(())
}
