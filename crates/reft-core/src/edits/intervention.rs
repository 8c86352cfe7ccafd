use std::fmt::Debug;

use tch::Tensor;

use crate::{Error, Result};

/// An edit of selected hidden states of a frozen base model.
pub trait Intervention: Debug {
    /// Returns the edited hidden states.
    ///
    /// # Shapes
    /// `base` and result: `[.., d]`, same kind and device, one row per edited token.
    ///
    /// # Errors
    /// [`Error::HiddenSize`] if the last dimension of `base` is not the `d` that it edits.
    fn intervene(&self, base: &Tensor, subspace: &Subspace) -> Result<Tensor>;
}

/// The coordinates of the subspace that an edit may change.
#[derive(Debug)]
pub enum Subspace {
    /// All `r`.
    Whole,
    /// 1 where the coordinate may change, 0 where not: f32, `[r]` or one row per edited token `[m, r]`.
    Masked(Tensor),
}

impl Subspace {
    /// The mask of a list of coordinates, `[r]`.
    ///
    /// # Errors
    /// [`Error::Subspace`] if a coordinate is not in `0..r`.
    pub fn mask_of(coordinates: &[i64], r: i64) -> Result<Tensor> {
        let mut mask = vec![0f32; r as usize];
        for &index in coordinates {
            if !(0..r).contains(&index) {
                return Err(Error::Subspace { index, rank: r });
            }
            mask[index as usize] = 1.0;
        }
        Ok(Tensor::from_slice(&mask))
    }
}

/// Checks the last dimension of `base` `[.., d]` against the size an intervention was built for.
///
/// # Errors
/// [`Error::HiddenSize`].
pub fn check_hidden_size(base: &Tensor, expected: i64) -> Result<()> {
    let got = base.size().last().copied().unwrap_or(0);
    if got != expected {
        return Err(Error::HiddenSize { expected, got });
    }
    Ok(())
}
