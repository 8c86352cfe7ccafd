use tch::{Kind, Tensor};

use crate::NormKind;
use crate::weights::quick_rows::normed;

/// A norm of the last dimension, its statistics in f32.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Tensor,       // [d]
    pub(crate) bias: Option<Tensor>, // [d]; of LayerNorm
    pub(crate) eps: f64,
    pub(crate) kind: NormKind,
}

impl Norm {
    /// `[.., d]` to `[.., d]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        match self.kind {
            NormKind::Rms => normed(x, &self.weight, self.eps)
                .unwrap_or_else(|| x.rms_norm(self.weight.size(), Some(&self.weight), self.eps)),
            NormKind::RmsPlusOne => {
                // in f32, since 1 + w would lose the last digits of w in half precision
                let weight = self.weight.to_kind(Kind::Float) + 1.0;
                let x32 = x.to_kind(Kind::Float);
                x32.rms_norm(weight.size(), Some(&weight), self.eps).to_kind(x.kind())
            }
            NormKind::Layer => {
                let weight = Some(&self.weight);
                x.layer_norm(self.weight.size(), weight, self.bias.as_ref(), self.eps, false)
            }
        }
    }
}
