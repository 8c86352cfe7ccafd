use tch::Tensor;

use crate::{Activation, Intervention, Result, Subspace, check_hidden_size, in_f32};

/// LoReFT and its variants: edits of a hidden state's coordinates in a learned subspace.
///
/// ```text
/// LoReFT    Φ(h) = h + Rᵀ(W h + b − R h),   the rows of R orthonormal      (Wu et al. 2024, arXiv:2404.03592)
///
/// all:      Φ(h) = h + Dᵀ(source(h) − target(h)),   D = R or P,   source = σ(W h + b) or b,   target = R h, P h + c or nothing
/// ```
///
/// With a bound `X` the edit `e = Φ(h) − h` is never longer than `X ‖h‖`: `Φ(h) = h + e · min(1, X ‖h‖ / ‖e‖)`.
///
/// [`Method`](crate::Method) lists the parts of each method. If `σ` is linear, the target is folded into an affine source,
/// `Dᵀ((W − D) h + b − c)`: one product with `h` instead of two. Hidden states are row vectors, so `h.matmul(Rᵀ)` is the
/// paper's `R h`.
#[derive(Debug)]
pub struct Edit {
    pub(crate) directions: Tensor, // Dᵀ [d, r]
    pub(crate) source: Source,
    pub(crate) target: Target,
    pub(crate) dropout: f64, // 0 outside of training
    pub(crate) max_norm: Option<f64>,
}

/// Smallest norm that an edit is divided by: about the square root of the smallest normal f32.
const TINY: f64 = 1e-19;

/// The change that an edit makes, if it is linear in the hidden state: `e = Dᵀ(A h + b)`.
#[derive(Debug, Clone, Copy)]
pub struct LinearEdit<'a> {
    /// `Dᵀ` `[d, r]`.
    pub directions: &'a Tensor,
    /// `A` `[r, d]`.
    pub weight: &'a Tensor,
    /// `b` `[r]`.
    pub bias: &'a Tensor,
}

/// The new coordinates in the subspace.
#[derive(Debug)]
pub(crate) enum Source {
    /// `σ(W h + b)`
    Affine { weight: Tensor, bias: Tensor, act_fn: Activation }, // [r, d], [r]
    /// `b`
    Constant(Tensor), // [r]
}

/// The old coordinates, which are subtracted from the source.
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
    /// The columns that span the edit, `Dᵀ` `[d, r]`: the rotation `Rᵀ` if the method has one.
    pub fn directions(&self) -> &Tensor {
        &self.directions
    }

    /// The change in the whole subspace, if it is linear: no activation, no dropout, no bound.
    pub fn linear(&self) -> Option<LinearEdit<'_>> {
        match (&self.source, &self.target) {
            (Source::Affine { weight, bias, act_fn: Activation::Linear }, Target::Nothing)
                if self.dropout == 0.0 && self.max_norm.is_none() =>
            {
                Some(LinearEdit { directions: &self.directions, weight, bias })
            }
            _ => None,
        }
    }

    /// The tensors of the edit: directions `[d, r]`, source (weight `[r, d]` and bias `[r]`) and target `[r]`.
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

impl Edit {
    /// The change of hidden states, `Φ(h) − h`, of the shape and kind of `base`, computed in f32.
    ///
    /// # Errors
    /// As [`Intervention::intervene`].
    pub fn change(&self, base: &Tensor, subspace: &Subspace) -> Result<Tensor> {
        check_hidden_size(base, self.directions.size()[0])?;
        Ok(in_f32(base, |h| self.change_of(&h, subspace)))
    }

    /// [`Self::change`] of `h` `[.., d]` in f32.
    fn change_of(&self, h: &Tensor, subspace: &Subspace) -> Tensor {
        let d_t = &self.directions; // Dᵀ [d, r]
        let source = match &self.source {
            Source::Affine { weight, bias, act_fn } => act_fn.apply(h.matmul(&weight.tr()) + bias), // W h + b [.., r]
            Source::Constant(b) => b.shallow_clone(), // b [r]
        };
        let change = match &self.target {
            Target::Coordinates => source - h.matmul(d_t), // W h + b − D h [.., r]
            Target::Biased(c) => source - (h.matmul(d_t) + c),
            Target::Nothing => source,
        };
        let change = match subspace {
            Subspace::Whole => change,
            Subspace::Masked(mask) => change * mask,
        };
        let change = change.matmul(&d_t.tr()).expand_as(h); // Dᵀ(W h + b − D h) [.., d]; [d] if constant
        let change = if self.dropout > 0.0 { change.dropout(self.dropout, true) } else { change };
        match self.max_norm {
            None => change,
            Some(bound) => {
                let norm = |x: &Tensor| x.norm_scalaropt_dim(2.0, [-1i64], true); // [.., 1]
                let longest = norm(h) * bound;
                // libtorch's gradient of a norm at 0, the start of edits, is 0
                change.shallow_clone() * (longest / norm(&change).clamp_min(TINY)).clamp_max(1.0)
            }
        }
    }
}

impl Intervention for Edit {
    fn intervene(&self, base: &Tensor, subspace: &Subspace) -> Result<Tensor> {
        check_hidden_size(base, self.directions.size()[0])?;
        Ok(in_f32(base, |h| self.change_of(&h, subspace) + h))
    }
}
