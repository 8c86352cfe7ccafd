use tch::Tensor;

use crate::site::Component::{Down, Gate, Up};
use crate::{Hooks, Linear, Pass, Result};

/// SwiGLU (Shazeer 2020): `down(silu(gate x) ⊙ up x)`.
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

impl Mlp {
    /// `[b, t, d]` to `[b, t, d]`.
    pub(crate) fn forward(
        &self,
        layer: usize,
        x: &Tensor,
        pass: &Pass,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor> {
        let gate = pass.project(layer, Gate, &self.gate, x, hooks)?;
        let up = pass.project(layer, Up, &self.up, x, hooks)?;
        pass.project(layer, Down, &self.down, &(gate.silu() * up), hooks)
    }
}
