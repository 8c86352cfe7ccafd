use reft_models::beside;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// The state of a step's gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grads {
    /// Every entry is a number.
    Finite,
    /// Some entry is infinite or NaN: the step must not be taken.
    Overflow,
}

/// Dynamic loss scaling for f16, as `torch.amp.GradScaler` does it.
///
/// The loss is multiplied by a scale so that small gradients do not vanish in f16, and gradients are divided by it again. A
/// step whose gradients overflow is not taken and halves the scale; 2,000 steps in a row without overflow double it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScaler {
    enabled: bool,
    scale: f64,
    good_steps: u32,
}

const INITIAL_SCALE: f64 = 65536.0;
const GROWTH_FACTOR: f64 = 2.0;
const BACKOFF_FACTOR: f64 = 0.5;
const GROWTH_INTERVAL: u32 = 2000;

impl LossScaler {
    /// A scaler that leaves losses and gradients alone: f32 and bf16 have the range.
    pub fn disabled() -> Self {
        Self { enabled: false, scale: 1.0, good_steps: 0 }
    }

    /// The present scale: the factor of a loss before it is differentiated.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Divides the gradients of a step, of any shape, by the scale, in place, and says whether they are numbers.
    pub fn unscale(&self, grads: &[Tensor]) -> Grads {
        if !self.enabled {
            return Grads::Finite;
        }
        let mut finite = Vec::with_capacity(grads.len());
        for grad in grads {
            let mut grad = grad.shallow_clone();
            let _scaled = grad.g_mul_scalar_(1.0 / self.scale);
            finite.push(beside(&grad.isfinite().all(), &grads[0]));
        }
        let all = finite.is_empty() || Tensor::stack(&finite, 0).all().int64_value(&[]) != 0; // sync
        if all { Grads::Finite } else { Grads::Overflow }
    }

    /// Lowers the scale: the step overflowed.
    pub fn back_off(&mut self) {
        self.scale *= BACKOFF_FACTOR;
        self.good_steps = 0;
    }

    /// Counts a step that was taken; the scale grows after enough of them.
    pub fn step_taken(&mut self) {
        if !self.enabled {
            return;
        }
        self.good_steps += 1;
        if self.good_steps == GROWTH_INTERVAL {
            self.scale *= GROWTH_FACTOR;
            self.good_steps = 0;
        }
    }
}

impl Default for LossScaler {
    /// A scaler at its initial scale of 65536.
    fn default() -> Self {
        Self { enabled: true, scale: INITIAL_SCALE, good_steps: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn a_scaled_loss_gives_unscaled_gradients() {
        let x = Tensor::from_slice(&[1.5f32, -2.0]).set_requires_grad(true);
        let scaler = LossScaler::default();
        (x.square().sum(Kind::Float) * scaler.scale()).backward();
        assert_eq!(x.grad().double_value(&[0]), 3.0 * 65536.0);
        assert_eq!(scaler.unscale(&[x.grad()]), Grads::Finite);
        assert_eq!(Vec::<f32>::try_from(x.grad()).ok(), Some(vec![3.0, -4.0])); // powers of two are exact
    }

    #[test]
    fn one_infinite_or_nan_entry_is_an_overflow() {
        let scaler = LossScaler::default();
        let good = Tensor::from_slice(&[1f32, 2.0]);
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let bad = Tensor::from_slice(&[0f32, bad, 1.0]);
            assert_eq!(scaler.unscale(&[good.copy(), bad]), Grads::Overflow);
        }
        assert_eq!(scaler.unscale(&[good]), Grads::Finite);
    }

    #[test]
    fn overflow_halves_and_two_thousand_good_steps_double() {
        let mut scaler = LossScaler::default();
        scaler.back_off();
        assert_eq!(scaler.scale(), 32768.0);
        for _ in 0..1999 {
            scaler.step_taken();
        }
        assert_eq!(scaler.scale(), 32768.0);
        scaler.step_taken();
        assert_eq!(scaler.scale(), 65536.0);
        for _ in 0..1999 {
            scaler.step_taken();
        }
        scaler.back_off(); // the count begins again
        for _ in 0..1999 {
            scaler.step_taken();
        }
        assert_eq!(scaler.scale(), 32768.0);
        scaler.step_taken();
        assert_eq!(scaler.scale(), 65536.0);
    }

    #[test]
    fn a_disabled_scaler_changes_nothing() {
        let mut scaler = LossScaler::disabled();
        let grad = Tensor::from_slice(&[f32::INFINITY, 1.0]);
        assert_eq!(scaler.unscale(&[grad.shallow_clone()]), Grads::Finite);
        assert_eq!(grad.double_value(&[1]), 1.0);
        for _ in 0..5000 {
            scaler.step_taken();
        }
        assert_eq!(scaler.scale(), 1.0);
    }
}
