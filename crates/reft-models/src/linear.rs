use tch::Tensor;

/// `y = W x + b`, on row vectors: `[.., in]` to `[.., out]`.
#[derive(Debug)]
pub struct Linear {
    /// `W` `[out, in]`.
    pub weight: Tensor,
    /// `b` `[out]`.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// Applies it.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}
