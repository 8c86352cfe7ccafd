use tch::Tensor;

use crate::site::Component::{Down, Gate, GateUp, Up};
use crate::weights::quick_rows::silu_gated;
use crate::{Hooks, Linear, MlpActivation, Pass, Result};

/// The MLP of a block, of any [`crate::MlpKind`].
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) input: MlpInput,
    pub(crate) down: Linear,
    pub(crate) activation: MlpActivation,
}

/// The input projections of an MLP.
#[derive(Debug)]
pub(crate) enum MlpInput {
    /// Two projections, one the gate of the other (Shazeer 2020): `activation(gate x) ⊙ up x`.
    Separate { gate: Linear, up: Linear },
    /// The same in one projection, gate first.
    Fused(Linear),
    /// One projection, without a gate.
    Plain(Linear),
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
        let inner = match &self.input {
            MlpInput::Separate { gate, up } => {
                let gate = pass.project(layer, Gate, gate, x, hooks)?;
                let up = pass.project(layer, Up, up, x, hooks)?;
                self.activation.gated(&gate, &up)
            }
            MlpInput::Fused(both) => {
                let both = pass.project(layer, GateUp, both, x, hooks)?; // [b, t, 2 f]
                let half = both.size()[2] / 2;
                self.activation.gated(&both.narrow(2, 0, half), &both.narrow(2, half, half))
            }
            MlpInput::Plain(up) => self.activation.apply(&pass.project(layer, Up, up, x, hooks)?),
        };
        pass.project(layer, Down, &self.down, &inner, hooks)
    }
}

impl MlpActivation {
    /// `activation(gate) ⊙ up`.
    fn gated(self, gate: &Tensor, up: &Tensor) -> Tensor {
        let quick = if self == Self::Silu { silu_gated(gate, up) } else { None };
        quick.unwrap_or_else(|| self.apply(gate) * up)
    }

    fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu("none"),
            Self::TanhGelu => x.gelu("tanh"),
        }
    }
}
