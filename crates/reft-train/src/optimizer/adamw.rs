use std::collections::BTreeMap;

use reft_core::Parameter;
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// AdamW (Loshchilov and Hutter 2019), number for number as `torch.optim.AdamW`.
///
/// With gradient `g`, step `k` counted from 1, `β₁ = 0.9`, `β₂ = 0.999`, `ε = 1e-8` and weight decay `λ`:
///
/// ```text
/// θ ← θ (1 − lr λ)
/// m ← β₁ m + (1 − β₁) g          v ← β₂ v + (1 − β₂) g²
/// θ ← θ − lr/(1 − β₁ᵏ) · m / (√v/√(1 − β₂ᵏ) + ε)
/// ```
///
/// Everything is f32. A parameter in half precision (full fine-tuning) is the rounded form of an f32 copy that takes the steps: most steps
/// are smaller than the spacing of half-precision numbers and would be lost.
///
/// Parameters made with [`Parameter::without_weight_decay`] skip the first line: decay has no meaning for the coordinates of a
/// rotation.
#[derive(Debug)]
pub struct AdamW {
    slots: Vec<Slot>,
    weight_decay: f64,
    rotation_lr_factor: f64,
    steps: i64,
}

#[derive(Debug)]
struct Slot {
    parameter: Parameter,
    m: Tensor,              // first moment, f32, of the parameter's shape
    v: Tensor,              // second moment
    master: Option<Tensor>, // f32 copy of a parameter in half precision
    grad: Option<Tensor>,   // f32 copy of a gradient in f16, of this step
}

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;

const STEPS: &str = "steps";
const MASTER: &str = ".master";

impl AdamW {
    /// A fresh optimizer of these leaves.
    pub fn new(parameters: Vec<Parameter>, weight_decay: f64) -> Self {
        let slot = |parameter: Parameter| {
            let zeros = || {
                let (size, device) = (parameter.tensor.size(), parameter.tensor.device());
                Tensor::zeros(size, (Kind::Float, device))
            };
            let leaf = &parameter.tensor;
            let is_half = matches!(leaf.kind(), Kind::Half | Kind::BFloat16);
            let master = is_half.then(|| leaf.detach().to_kind(Kind::Float));
            Slot { m: zeros(), v: zeros(), master, grad: None, parameter }
        };
        let slots = parameters.into_iter().map(slot).collect();
        Self { slots, weight_decay, rotation_lr_factor: 1.0, steps: 0 }
    }

    /// Gives rotations `factor` times the learning rate of the other parameters.
    pub fn with_rotation_lr_factor(self, factor: f64) -> Self {
        Self { rotation_lr_factor: factor, ..self }
    }

    /// Number of [groups](Parameter::clip_groups) of entries whose gradients are clipped by themselves.
    pub(crate) fn clip_groups(&self) -> i64 {
        self.slots.first().map_or(1, |slot| slot.parameter.clip_groups)
    }

    /// Sets every gradient to 0.
    pub fn zero_grad(&mut self) {
        for slot in &mut self.slots {
            slot.parameter.tensor.zero_grad();
        }
    }

    /// The gradients themselves, in the shapes of the parameters: [`Self::step`] sees changes made in place. Leaves without a gradient are left out.
    ///
    /// Gradients in f16 are given as f32 copies: divided by the loss scale, they would underflow in f16.
    pub fn grads(&mut self) -> Vec<Tensor> {
        self.slots.iter_mut().filter_map(Slot::grad).collect()
    }

    /// Which leaves have a gradient.
    pub(crate) fn with_grad(&self) -> impl Iterator<Item = bool> {
        self.slots.iter().map(|slot| slot.parameter.tensor.grad().defined())
    }

    /// Gives leaf `index` a gradient of 0 if it has none.
    pub(crate) fn give_grad(&mut self, index: usize) {
        let leaf = &self.slots[index].parameter.tensor;
        if !leaf.grad().defined() {
            (leaf.sum(Kind::Float) * 0.0).backward();
        }
    }

    /// Updates every leaf that has a gradient.
    pub fn step(&mut self, lr: f64) {
        self.steps += 1;
        let k = self.steps as i32;
        let (correction1, correction2) = (1.0 - BETA1.powi(k), 1.0 - BETA2.powi(k));
        tch::no_grad(|| {
            for Slot { parameter, m, v, master, grad } in &mut self.slots {
                let grad = grad.take().unwrap_or_else(|| parameter.tensor.grad());
                if !grad.defined() {
                    continue;
                }
                let g = grad.to_kind(Kind::Float);
                let leaf = master.as_mut().unwrap_or(&mut parameter.tensor);
                let lr = if parameter.is_rotation { lr * self.rotation_lr_factor } else { lr };
                if parameter.weight_decay {
                    let _decayed = leaf.g_mul_scalar_(1.0 - lr * self.weight_decay);
                }
                let _m = m.lerp_(&g, 1.0 - BETA1);
                *v *= BETA2;
                let mut square = g.square();
                drop(g);
                square *= 1.0 - BETA2;
                *v += &square;
                // in the buffer of `square`, to save memory: a trained embedding is large
                let mut update = v.sqrt_out(&square);
                update /= correction2.sqrt();
                update += EPS;
                let mut update = m.divide_out(&update, &update);
                update *= lr / correction1;
                *leaf -= update;
                if let Some(master) = master {
                    parameter.tensor.copy_(master);
                }
            }
        });
    }

    /// The moments and f32 copies by parameter name, in the parameters' shapes, and the number of steps taken.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let tensors = self.slots.iter().flat_map(Slot::tensors);
        let copies = tensors.map(|(name, tensor)| (name, tensor.copy()));
        copies.chain([(STEPS.to_owned(), Tensor::from(self.steps))]).collect()
    }

    /// Restores a [`Self::state`].
    ///
    /// # Errors
    /// [`Error::OptimizerState`] if a tensor is missing, unexpected or of another shape, by name; nothing is changed then. A half-precision
    /// state without f32 copies is refused: the version that wrote it lost steps.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let own = self.state();
        let wrong =
            |name: &str, reason: String| Error::OptimizerState { name: name.into(), reason };
        if let Some(name) = state.keys().find(|name| !own.contains_key(*name)) {
            return Err(wrong(name, "belongs to no parameter of the adapter".into()));
        }
        for (name, tensor) in &own {
            let missing = match name.ends_with(MASTER) {
                true => {
                    "is missing: the run was begun by a version that rounded each step to half precision; start it anew"
                }
                false => "is missing",
            };
            let found = state.get(name).ok_or_else(|| wrong(name, missing.into()))?;
            let (found, expected) = (found.size(), tensor.size());
            if found != expected {
                return Err(wrong(name, format!("has shape {found:?}, expected {expected:?}")));
            }
        }
        for (name, tensor) in self.slots.iter().flat_map(Slot::tensors) {
            tensor.shallow_clone().copy_(&state[&name]);
        }
        self.steps = state[STEPS].int64_value(&[]);
        Ok(())
    }
}

impl Slot {
    /// Its tensors in a state, by name.
    fn tensors(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let named = [(".m", Some(&self.m)), (".v", Some(&self.v)), (MASTER, self.master.as_ref())];
        let name =
            |(kind, tensor): (&str, Option<_>)| Some((self.parameter.name.clone() + kind, tensor?));
        named.into_iter().filter_map(name)
    }

    fn grad(&mut self) -> Option<Tensor> {
        let grad = self.parameter.tensor.grad();
        if !grad.defined() {
            return None;
        }
        if grad.kind() != Kind::Half {
            return Some(grad);
        }
        let grad = self.grad.insert(grad.to_kind(Kind::Float));
        Some(grad.shallow_clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;
    use tch::nn::{self, OptimizerConfig};

    /// An uneven quadratic, `Σ cᵢ (xᵢ − i)²`, with curvatures over four orders of magnitude.
    fn loss(x: &Tensor) -> Tensor {
        let i = Tensor::arange(6, (Kind::Float, Device::Cpu));
        let c = Tensor::from_slice(&[1e-2f32, 0.1, 1.0, 3.0, 10.0, 100.0]);
        (c * (x - i).square()).sum(Kind::Float)
    }

    fn start() -> Tensor {
        Tensor::from_slice(&[3f32, -1.0, 0.5, 8.0, 4.1, -2.0]).set_requires_grad(true)
    }

    /// Oracle: libtorch's own `torch::optim::AdamW`, another implementation of the same formulas.
    #[test]
    fn fifty_steps_equal_libtorch() -> std::result::Result<(), tch::TchError> {
        for weight_decay in [0.0, 0.1] {
            let vs = nn::VarStore::new(Device::Cpu);
            let theirs = vs.root().var_copy("x", &start());
            let config = nn::AdamW { wd: weight_decay, ..nn::AdamW::default() };
            let mut optimizer = config.build(&vs, 0.0)?;
            let ours = start();
            let mut adamw = AdamW::new(vec![Parameter::new("x", &ours)], weight_decay);
            for step in 0..50 {
                let lr = 0.1 / (1.0 + step as f64);
                optimizer.set_lr(lr);
                optimizer.backward_step(&loss(&theirs));
                adamw.zero_grad();
                loss(&ours).backward();
                adamw.step(lr);
                let difference = (&ours - &theirs).abs().max().double_value(&[]);
                // f32 rounding of numbers up to 8, fifty times; measured 5e-7
                assert!(difference < 2e-6, "step {step}, decay {weight_decay}: {difference:e}");
            }
            let moved = (ours - start()).abs().min().double_value(&[]);
            assert!(moved > 0.05, "the test has no power: {moved}");
        }
        Ok(())
    }

    /// Steps of 1e-4 from 1, where bf16 and f16 have neighbours 3.9e-3 and 4.9e-4 away.
    #[test]
    fn steps_in_half_precision_are_those_of_f32_rounded_once() {
        for kind in [Kind::BFloat16, Kind::Half] {
            let of = |kind| Tensor::ones([3], (kind, Device::Cpu)).set_requires_grad(true);
            let (half, float) = (of(kind), of(Kind::Float));
            let mut optimizers =
                [&half, &float].map(|leaf| AdamW::new(vec![Parameter::new("x", leaf)], 0.01));
            for _ in 0..100 {
                for (leaf, adamw) in [&half, &float].into_iter().zip(&mut optimizers) {
                    adamw.zero_grad();
                    (leaf * 0.5).sum(Kind::Float).backward();
                    assert_eq!(adamw.grads().len(), 1);
                    adamw.step(1e-4);
                }
            }
            assert_eq!(half.detach(), float.detach().to_kind(kind));
            let moved = 1.0 - half.double_value(&[0]);
            assert!((moved - 1e-2).abs() < 4e-3, "{kind:?}: {moved}"); // a neighbour
            let [half, float] = optimizers;
            assert_eq!(half.state()["x.master"], float.slots[0].parameter.tensor.detach());
            assert!(!float.state().contains_key("x.master"));
        }
    }

    #[test]
    fn small_gradients_in_f16_survive_the_loss_scale() {
        let x = Tensor::ones([2], (Kind::Half, Device::Cpu)).set_requires_grad(true);
        let mut adamw = AdamW::new(vec![Parameter::new("x", &x)], 0.0);
        let scaler = crate::LossScaler::default();
        (&x * (1e-8 * scaler.scale())).sum(Kind::Float).backward();
        let grads = adamw.grads();
        assert_eq!(scaler.unscale(&grads), crate::Grads::Finite);
        let found = grads[0].double_value(&[0]);
        assert!((found / 1e-8 - 1.0).abs() < 1e-3, "{found}"); // f16
        adamw.step(1e-2);
        assert!(x.double_value(&[0]) < 0.999);
    }

    #[test]
    fn decay_spares_the_parameters_exempt_from_it() {
        let (decayed, exempt) = (start(), start());
        let parameters = vec![
            Parameter::new("decayed", &decayed),
            Parameter::without_weight_decay("exempt", &exempt),
        ];
        let mut adamw = AdamW::new(parameters, 0.5);
        ((&decayed + &exempt).sum(Kind::Float) * 0.0).backward(); // gradients of 0: decay alone moves
        adamw.step(0.1);
        assert_eq!(exempt, start());
        let difference = (decayed - start() * 0.95).abs().max().double_value(&[]);
        assert!(difference < 1e-6, "{difference}"); // f32 rounding of numbers up to 8
    }

    #[test]
    fn rotations_have_a_rate_of_their_own() {
        let leaf = || Tensor::from_slice(&[3f32, -1.0, 0.5, 8.0]).set_requires_grad(true);
        let (free, rotation) = (leaf(), leaf());
        let parameters = vec![Parameter::new("free", &free), Parameter::rotation("R", &rotation)];
        let mut adamw = AdamW::new(parameters, 0.0).with_rotation_lr_factor(0.25);
        let start = free.detach().copy();
        (&free + &rotation).sum(Kind::Float).backward();
        adamw.step(1e-2);
        let moved = |x: &Tensor| (x.detach() - &start).abs().max().double_value(&[]);
        assert!((moved(&free) - 1e-2).abs() < 1e-6, "{}", moved(&free)); // f32, entries up to 8
        assert!((moved(&rotation) - 2.5e-3).abs() < 1e-6, "{}", moved(&rotation));
    }

    #[test]
    fn a_leaf_without_gradient_is_left_alone() {
        let (used, unused) = (start(), start());
        let parameters = vec![Parameter::new("used", &used), Parameter::new("unused", &unused)];
        let mut adamw = AdamW::new(parameters, 0.5);
        loss(&used).backward();
        assert_eq!(adamw.grads().len(), 1);
        adamw.step(0.1);
        assert_eq!(unused, start());
        assert_ne!(used, start());
    }

    #[test]
    fn going_back_to_a_state_repeats_every_later_step_bit_for_bit() -> Result<()> {
        let x = start();
        let mut adamw = AdamW::new(vec![Parameter::new("x", &x)], 0.01);
        let run = |x: &Tensor, adamw: &mut AdamW| {
            for _ in 0..5 {
                adamw.zero_grad();
                loss(x).backward();
                adamw.step(0.05);
            }
        };
        run(&x, &mut adamw);
        let (saved_x, state) = (x.detach().copy(), adamw.state());
        run(&x, &mut adamw);

        let again = saved_x.set_requires_grad(true);
        let mut restored = AdamW::new(vec![Parameter::new("x", &again)], 0.01);
        restored.load_state(&state)?;
        run(&again, &mut restored);
        assert_eq!(again, x);
        Ok(())
    }

    #[test]
    fn a_state_of_other_parameters_is_refused_by_name() {
        let x = start();
        let mut adamw = AdamW::new(vec![Parameter::new("x", &x)], 0.0);
        let mut missing = adamw.state();
        missing.remove("x.v");
        let mut unexpected = adamw.state();
        unexpected.insert("y.m".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu)));
        let half = Tensor::ones([2], (Kind::BFloat16, Device::Cpu)).set_requires_grad(true);
        let mut of_half = AdamW::new(vec![Parameter::new("y", &half)], 0.0);
        let mut without_copy = of_half.state();
        assert!(without_copy.remove("y.master").is_some());
        let refused = of_half.load_state(&without_copy);
        assert!(
            matches!(&refused, Err(Error::OptimizerState { name, reason }) if name == "y.master" && reason.contains("start it anew")),
            "{refused:?}"
        );
        let mut misshapen = adamw.state();
        misshapen.insert("x.m".into(), Tensor::zeros([5], (Kind::Float, Device::Cpu)));
        for (state, expected) in [(missing, "x.v"), (unexpected, "y.m"), (misshapen, "x.m")] {
            let refused = adamw.load_state(&state);
            assert!(
                matches!(&refused, Err(Error::OptimizerState { name, .. }) if name == expected),
                "{refused:?}"
            );
        }
    }
}
