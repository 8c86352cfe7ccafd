use tch::{Kind, Tensor};

use crate::{Error, Intervention, Result, Subspace, check_hidden_size, in_f32};

/// Edits that change every hidden state in the same way, to test the role of a site.
///
/// With a [`Subspace::Masked`] of length `d` only those coordinates of the hidden state are edited.
#[derive(Debug)]
pub struct ConstantEdit {
    vector: Tensor, // [d]
    adds: bool,
}

impl ConstantEdit {
    /// `Φ(h) = 0`: zero ablation.
    pub fn zero(hidden_size: i64, device: tch::Device) -> Self {
        Self { vector: Tensor::zeros([hidden_size], (Kind::Float, device)), adds: false }
    }

    /// `Φ(h) = v` for `v` `[d]`; mean ablation if `v` is the mean of many hidden states of the site.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `v` is a vector.
    pub fn replacing_with(vector: &Tensor) -> Result<Self> {
        Self::new(vector, false)
    }

    /// `Φ(h) = h + v` for `v` `[d]`: steering along a direction.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `v` is a vector.
    pub fn adding(vector: &Tensor) -> Result<Self> {
        Self::new(vector, true)
    }

    fn new(vector: &Tensor, adds: bool) -> Result<Self> {
        let got = vector.size();
        if got.len() != 1 {
            return Err(Error::Shape { name: "vector".into(), expected: vec![-1], got });
        }
        Ok(Self { vector: vector.to_kind(Kind::Float), adds })
    }
}

impl Intervention for ConstantEdit {
    fn intervene(&self, base: &Tensor, subspace: &Subspace) -> Result<Tensor> {
        check_hidden_size(base, self.vector.size()[0])?;
        Ok(in_f32(base, |h| {
            let edited = if self.adds { &h + &self.vector } else { self.vector.expand_as(&h) };
            match subspace {
                Subspace::Whole => edited,
                Subspace::Masked(mask) => &h + (edited - &h) * mask,
            }
        }))
    }
}
