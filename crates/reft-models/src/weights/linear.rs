use tch::Tensor;

use crate::Weight;

/// `y = W x + b`, on row vectors: `[.., in]` to `[.., out]`.
#[derive(Debug)]
pub struct Linear {
    /// `W` `[out, in]`.
    pub weight: Weight,
    /// `b` `[out]`.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// Applies it. A quantised weight is expanded for it, and kept so as long as a backward is to come.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight.dense(), self.bias.as_ref())
    }
}
