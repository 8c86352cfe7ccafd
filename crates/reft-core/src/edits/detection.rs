use tch::{Kind, Tensor};

use crate::{Result, check_hidden_size, in_f32};

/// The latents that ReFT-r1 reads in hidden states, and the steering that follows (Wu et al. 2025, arXiv:2501.17148, AxBench).
///
/// The latent of a token is `relu(vᵀ h)`: how much of the concept `v` it shows. A sequence is steered by `Φ(h) = h + a v` with `a` the mean
/// of its `k` largest latents.
#[derive(Debug)]
pub struct Detection {
    /// The latents, `[b, t]` in f32; 0 at tokens that do not count.
    pub latents: Tensor,
    /// The mean of the largest latents of each sequence, `[b]`.
    pub largest: Tensor,
    /// The mean over each sequence's tokens of the latents that are not among its largest, `[b]`.
    pub others: Tensor,
    /// The mean over each sequence's tokens of all latents, `[b]`.
    pub all: Tensor,
}

impl Detection {
    /// Reads `h` `[b, t, d]` along `v` `[d]`. `mask` `[b, t]` is 1 at the tokens that count and 0 at the others. If a sequence has
    /// fewer than `k` such tokens, all of them are among its largest.
    ///
    /// # Errors
    /// [`Error::HiddenSize`](crate::Error::HiddenSize) if `h` is of another size.
    pub fn of(h: &Tensor, v: &Tensor, mask: &Tensor, k: i64) -> Result<Self> {
        check_hidden_size(h, v.size()[0])?;
        let latents = in_f32(h, |h| h.matmul(&v.to_kind(Kind::Float)).relu()).to_kind(Kind::Float);
        let latents = latents * mask; // [b, t]
        let counted = mask.sum_dim_intlist([1i64].as_slice(), false, Kind::Float); // [b]
        let sum = |x: &Tensor| x.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        let k_of_all = k.min(latents.size()[1]);
        let (top, _) = latents.topk(k_of_all, 1, true, false);
        let (top, all) = (sum(&top), sum(&latents));
        Ok(Self {
            largest: &top / counted.clamp_max(k as f64),
            others: (&all - top) / &counted,
            all: all / counted,
            latents,
        })
    }

    /// `Φ(h) = h + a v` with `a` `[b]`.
    ///
    /// # Shapes
    /// `h` and result: `[b, t, d]`.
    pub fn steered(h: &Tensor, v: &Tensor, a: &Tensor) -> Tensor {
        in_f32(h, |h| h + a.view([-1, 1, 1]) * v)
    }
}
