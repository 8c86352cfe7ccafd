use tch::Tensor;

use crate::site::Component::{Down, Gate, GateUp, Up};
use crate::{Hooks, Linear, MlpActivation, Pass, Result};

/// A gated MLP (Shazeer 2020): `down(activation(gate x) ⊙ up x)`.
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) input: MlpInput,
    pub(crate) down: Linear,
    pub(crate) activation: MlpActivation,
}

/// The two halves of an MLP's input.
#[derive(Debug)]
pub(crate) enum MlpInput {
    /// Two projections.
    Separate { gate: Linear, up: Linear },
    /// One projection, gate first.
    Fused(Linear),
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
        let (gate, up) = match &self.input {
            MlpInput::Separate { gate, up } => {
                let gate = pass.project(layer, Gate, gate, x, hooks)?;
                (gate, pass.project(layer, Up, up, x, hooks)?)
            }
            MlpInput::Fused(both) => {
                let both = pass.project(layer, GateUp, both, x, hooks)?; // [b, t, 2 f]
                let half = both.size()[2] / 2;
                (both.narrow(2, 0, half), both.narrow(2, half, half))
            }
        };
        let gated = self.activation.apply(&gate) * up;
        pass.project(layer, Down, &self.down, &gated, hooks)
    }
}

impl MlpActivation {
    fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu("none"),
            Self::TanhGelu => x.gelu("tanh"),
        }
    }
}
