//! The loss scaler beside torch.amp.GradScaler. Oracle: tools/oracle/make_loss_scaler.py.

use reft_test_support::{oracle_text, tensors};
use std::error::Error;

use reft_train::{Grads, LossScaler};
use tch::Tensor;

use crate::tiny_llama::TestResult;

/// Treats the gradients of a step as the trainer does; returns whether the step is skipped.
fn decide(scaler: &mut LossScaler, gradients: &[Tensor]) -> bool {
    let skipped = scaler.unscale(gradients) == Grads::Overflow;
    match skipped {
        true => scaler.back_off(),
        false => scaler.step_taken(),
    }
    skipped
}

#[test]
fn scales_gradients_and_skipped_steps_are_those_of_grad_scaler() -> TestResult {
    let tensors = tensors("loss_scaler/gradients.safetensors")?;
    let record =
        serde_json::from_str::<serde_json::Value>(&oracle_text("loss_scaler/steps.json")?)?;
    let mut scaler = LossScaler::default();
    let steps = record["steps"].as_array().ok_or("no steps")?;
    let mut skips = 0;
    for (i, step) in steps.iter().enumerate() {
        assert_eq!(Some(scaler.scale()), step["scale"].as_f64(), "before step {i}");
        let gradients = [0, 1].map(|p| tensors[&format!("{i}.scaled.{p}")].copy());
        let skipped = decide(&mut scaler, &gradients);
        assert_eq!(Some(skipped), step["skipped"].as_bool(), "step {i}");
        assert_eq!(Some(scaler.scale()), step["scale_after"].as_f64(), "after step {i}");
        for (p, gradient) in gradients.iter().enumerate() {
            let expected = &tensors[&format!("{i}.unscaled.{p}")];
            // bit equal: scales are powers of two; NaN in the same place
            let same = gradient
                .eq_tensor(expected)
                .logical_or(&gradient.isnan().logical_and(&expected.isnan()));
            assert!(bool::try_from(same.all())?, "step {i}: {gradient} is not {expected}");
        }
        skips += usize::from(skipped);
    }
    assert_eq!((skips, steps.len()), (5, 12));
    Ok(())
}

#[test]
fn the_scale_grows_and_falls_when_grad_scalers_does() -> TestResult {
    let record =
        serde_json::from_str::<serde_json::Value>(&oracle_text("loss_scaler/steps.json")?)?;
    let mut scaler = LossScaler::default();
    for step in record["steps"].as_array().ok_or("no steps")? {
        decide(&mut scaler, &[gradient(step["skipped"].as_bool() == Some(true))]);
    }
    let mut changes: Vec<(u64, f64)> = Vec::new();
    let mut i = 0;
    for length in record["long"].as_array().ok_or("no runs")? {
        let length = length.as_u64().ok_or("no length")?;
        for good in 0..=length {
            decide(&mut scaler, &[gradient(good == length)]);
            if changes.last().is_none_or(|(_, scale)| *scale != scaler.scale()) {
                changes.push((i, scaler.scale()));
            }
            i += 1;
        }
    }
    let pair = |pair: &serde_json::Value| Some((pair[0].as_u64()?, pair[1].as_f64()?));
    let expected: Option<Vec<_>> =
        record["changes"].as_array().ok_or("no changes")?.iter().map(pair).collect();
    assert_eq!(Some(changes), expected);
    Ok::<(), Box<dyn Error>>(())
}

fn gradient(overflows: bool) -> Tensor {
    Tensor::from_slice(&[1.0, if overflows { f32::INFINITY } else { 2.0 }])
}
