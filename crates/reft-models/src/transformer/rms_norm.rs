use tch::Tensor;

/// RMSNorm (Zhang and Sennrich 2019): `x / √(mean(x²) + ε) ⊙ weight`, the mean in f32.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    pub(crate) weight: Tensor, // [d]
    pub(crate) eps: f64,
}

impl RmsNorm {
    /// `[.., d]` to `[.., d]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.rms_norm(self.weight.size(), Some(&self.weight), self.eps)
    }
}
