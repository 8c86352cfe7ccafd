use tch::Tensor;

use crate::{Activation, Intervention, Result, Subspace, check_hidden_size, in_f32};

/// LoReFT and the edits that are made from it: a hidden state's coordinates in a learned subspace are replaced.
///
/// ```text
/// LoReFT    Φ(h) = h + Rᵀ(W h + b − R h),   the rows of R orthonormal      (Wu et al. 2024, arXiv:2404.03592)
///
/// all:      Φ(h) = h + Dᵀ(source(h) − target(h)),   D = R or P,   source = σ(W h + b) or b,   target = R h, P h + c or nothing
/// ```
///
/// The table of [`Method`](crate::Method) says which method has which parts. Hidden states are row vectors, so `h.matmul(Rᵀ)` is the
/// paper's `R h`.
#[derive(Debug)]
pub struct Edit {
    pub(crate) directions: Tensor, // Dᵀ [d, r]
    pub(crate) source: Source,
    pub(crate) target: Target,
    pub(crate) dropout: f64, // 0 but in training
}

/// What is put into the subspace.
#[derive(Debug)]
pub(crate) enum Source {
    /// `σ(W h + b)`
    Affine { weight: Tensor, bias: Tensor, act_fn: Activation }, // [r, d], [r]
    /// `b`
    Constant(Tensor), // [r]
}

/// What is taken out of it.
#[derive(Debug)]
pub(crate) enum Target {
    /// Nothing: the source is added.
    Nothing,
    /// The coordinates `D h`.
    Coordinates,
    /// `D h + c`, with `c` `[r]`.
    Biased(Tensor),
}

impl Edit {
    /// The columns that span the edit, `Dᵀ` `[d, r]`: the rotation `Rᵀ` where the method has one.
    pub fn directions(&self) -> &Tensor {
        &self.directions
    }

    /// The tensors that it computes with.
    pub fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        let source: Vec<&mut Tensor> = match &mut self.source {
            Source::Affine { weight, bias, .. } => vec![weight, bias],
            Source::Constant(bias) => vec![bias],
        };
        let target = match &mut self.target {
            Target::Nothing | Target::Coordinates => None,
            Target::Biased(c) => Some(c),
        };
        std::iter::once(&mut self.directions).chain(source).chain(target).collect()
    }
}

impl Intervention for Edit {
    fn intervene(&self, base: &Tensor, subspace: &Subspace) -> Result<Tensor> {
        check_hidden_size(base, self.directions.size()[0])?;
        let r_t = &self.directions; // Rᵀ [d, r]
        Ok(in_f32(base, |h| {
            let source = match &self.source {
                Source::Affine { weight, bias, act_fn } => {
                    act_fn.apply(h.matmul(&weight.tr()) + bias)
                } // W h + b [.., r]
                Source::Constant(b) => b.shallow_clone(), // b [r]
            };
            let change = match &self.target {
                Target::Coordinates => source - h.matmul(r_t), // W h + b − R h [.., r]
                Target::Biased(c) => source - (h.matmul(r_t) + c),
                Target::Nothing => source,
            };
            let change = match subspace {
                Subspace::Whole => change,
                Subspace::Masked(mask) => change * mask,
            };
            let edit = change.matmul(&r_t.tr()); // Rᵀ(W h + b − R h) [.., d], or [d] if constant
            if self.dropout > 0.0 {
                return &h + edit.expand_as(&h).dropout(self.dropout, true);
            }
            h + edit // h + Rᵀ(W h + b − R h)
        }))
    }
}
