use tch::{Kind, Tensor};

use crate::{Result, refuse};

/// A linear probe: the logistic regression that separates two sets of hidden states.
///
/// With `σ(wᵀ h/s + b)` the probability that `h` is of the first set, and `s` the root of the mean square of all numbers, `w` and `b` make
///
/// ```text
/// ½ ‖w‖² − Σ log σ(wᵀ h/s + b) − Σ log σ(−wᵀ h/s − b)
/// ```
///
/// minimal, the first sum over the first set and the second over the other: scikit-learn's `LogisticRegression` with `C = 1`. The minimum is
/// unique and found by Newton's method in f64, so a probe does not depend on a learning rate, steps or a seed.
#[derive(Debug)]
pub struct LinearProbe {
    weights: Tensor, // [d]
    intercept: f64,
}

impl LinearProbe {
    /// The probe that separates `n` positive from `m` negative hidden states, `[n, d]` and `[m, d]`.
    ///
    /// # Errors
    /// [`crate::Error::OptionValue`] for an empty set, or hidden states that are not finite.
    pub fn of(positive: &Tensor, negative: &Tensor) -> Result<Self> {
        let (n, m) = (positive.size()[0], negative.size()[0]);
        if n == 0 || m == 0 {
            return refuse("texts", format!("{n} and {m}"), "at least one of each kind");
        }
        let both = Tensor::cat(&[positive, negative], 0).detach().to_kind(Kind::Double);
        let scale = both.square().mean(Kind::Double).double_value(&[]).sqrt();
        if !scale.is_finite() || scale == 0.0 {
            return refuse(
                "hidden states",
                format!("of size {scale}"),
                "finite numbers, not all 0",
            );
        }
        let options = (Kind::Double, both.device());
        let x = Tensor::cat(&[both / scale, Tensor::ones([n + m, 1], options)], 1); // [n + m, d + 1]
        let y = Tensor::cat(&[Tensor::ones([n], options), Tensor::zeros([m], options)], 0);
        let d = x.size()[1] - 1;
        let penalty = Tensor::cat(&[Tensor::ones([d], options), Tensor::zeros([1], options)], 0);
        let loss = |w: &Tensor| {
            let z = x.mv(w);
            let wrong = z.softplus() - &y * &z; // −log of the probability of the right set
            let own = wrong.sum(Kind::Double) + (w * w * &penalty).sum(Kind::Double) * 0.5;
            own.double_value(&[])
        };
        let mut w = Tensor::zeros([d + 1], options);
        let mut at = loss(&w);
        for _ in 0..STEPS {
            let p: Tensor = x.mv(&w).sigmoid();
            let gradient = x.tr().mv(&(&p - &y)) + &w * &penalty;
            if gradient.abs().max().double_value(&[]) < SMALL {
                break;
            }
            let curvature: Tensor = &p * (1.0 - &p);
            let hessian = x.tr().matmul(&(&x * curvature.unsqueeze(1))) + penalty.diag(0);
            let step = Tensor::linalg_solve(&hessian, &gradient, true);
            // a full Newton step may overshoot at first
            let mut size = 1.0;
            let taken = loop {
                let next = &w - &step * size;
                let found = loss(&next);
                if found <= at || size < 1e-6 {
                    break (next, found);
                }
                size *= 0.5;
            };
            (w, at) = taken;
        }
        Ok(Self { weights: w.narrow(0, 0, d).copy(), intercept: w.double_value(&[d]) })
    }

    /// `w` `[d]`, in f64.
    pub fn weights(&self) -> &Tensor {
        &self.weights
    }

    /// `b`
    pub fn intercept(&self) -> f64 {
        self.intercept
    }
}

/// Most Newton steps; usually a handful is enough.
const STEPS: usize = 100;

/// The iteration stops when no entry of the gradient is larger.
const SMALL: f64 = 1e-10;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_str, from_value};

    type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

    /// Oracle: scikit-learn 1.9.1, tools/oracle/make_linear_probe.py.
    #[test]
    fn probes_are_scikit_learns() -> TestResult {
        let oracle = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/oracle/linear_probe/linear_probe.json"
        );
        let oracle: Value = from_str(&std::fs::read_to_string(oracle)?)?;
        let cases = oracle.as_object().ok_or("cases")?;
        assert_eq!(cases.len(), 3);
        for (name, case) in cases {
            let rows = |field: &str| -> std::result::Result<Tensor, Box<dyn std::error::Error>> {
                let rows: Vec<Vec<f32>> = from_value(case[field].clone())?;
                Ok(Tensor::from_slice2(&rows))
            };
            let probe = LinearProbe::of(&rows("positive")?, &rows("negative")?)?;
            let expected: Vec<f64> = from_value(case["weights"].clone())?;
            let difference = (probe.weights() - Tensor::from_slice(&expected)).abs().max();
            let difference = difference.double_value(&[]);
            assert!(difference < 1e-6, "{name}: {difference:e}"); // f32 hidden states
            let intercept = case["intercept"].as_f64().ok_or("intercept")?;
            assert!((probe.intercept() - intercept).abs() < 1e-6, "{name}: {}", probe.intercept());
            assert!(expected.iter().any(|w| w.abs() > 0.3), "{name}: no power");
        }
        let nothing = Tensor::zeros([2, 3], (Kind::Float, tch::Device::Cpu));
        assert!(LinearProbe::of(&nothing, &nothing).is_err());
        assert!(LinearProbe::of(&nothing.narrow(0, 0, 0), &nothing).is_err());
        Ok(())
    }
}
