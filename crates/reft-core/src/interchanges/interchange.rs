use std::fmt::Debug;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::maps::orthonormal::check_orthonormal;
use crate::{Error, Result, check_hidden_size, in_f32};

/// An interchange intervention: an edit that replaces hidden states of a base run by hidden states of a source run.
///
/// Base and source are plain tensors: the caller chooses the model, the inputs, the site and the tokens.
pub trait Interchange: Debug {
    /// Returns the base's hidden states with the selected part taken from the source.
    ///
    /// # Shapes
    /// `base`, `source` and result: `[.., d]`, one row per edited token; the result has kind and device of `base`.
    ///
    /// # Errors
    /// [`Error::HiddenSize`] if the last dimension of `base` is not the `d` that it edits; [`Error::Shape`] if `source` is of another shape.
    fn intervene(&self, base: &Tensor, source: &Tensor) -> Result<Tensor>;

    /// The tensors of the edit that may depend on trained parameters, of any shape.
    fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        Vec::new()
    }
}

impl<T: Interchange + ?Sized> Interchange for &T {
    fn intervene(&self, base: &Tensor, source: &Tensor) -> Result<Tensor> {
        (**self).intervene(base, source)
    }
}

/// Vanilla interchange: the whole hidden state of the source, `Φ(b, s) = s` (Geiger et al. 2021, arXiv:2106.02997).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VanillaInterchange {
    hidden_size: i64,
}

impl VanillaInterchange {
    /// For hidden states of size `d`.
    pub fn new(hidden_size: i64) -> Self {
        Self { hidden_size }
    }
}

impl Interchange for VanillaInterchange {
    fn intervene(&self, base: &Tensor, source: &Tensor) -> Result<Tensor> {
        check_pair(base, source, self.hidden_size)?;
        Ok(source.to_kind(base.kind()))
    }
}

/// Distributed interchange intervention (DII): the source's coordinates in a subspace, the base's everywhere else.
///
/// ```text
/// Φ(b, s) = b + Rᵀ (m ⊙ (R s − R b))
/// ```
///
/// `R` `[r, d]` has orthonormal rows and `m` `[r]` is 1 unless a gate is set (Geiger et al. 2023, arXiv:2303.02536, for `m = 1`; Wu et
/// al. 2023, arXiv:2305.08809, for a learned one). One form serves all of the family: a low-rank `R`; the first k coordinates of a
/// full rotation, which are the low-rank `R` of its first k rows; boundless and masked search, where `m` is learned; principal components
/// ([`PrincipalComponents`](crate::PrincipalComponents)); and unrotated neurons ([`Self::neurons`]).
///
/// The change is added to the base; the base is not rebuilt from rotated coordinates. So `s = b` gives `b` bit for bit, and the part of
/// `b` outside the subspace keeps its precision.
#[derive(Debug)]
pub struct SubspaceInterchange {
    pub(crate) columns: Tensor,      // Rᵀ [d, r]
    pub(crate) gate: Option<Tensor>, // m [r]
}

impl SubspaceInterchange {
    /// The subspace that the columns of `Rᵀ` `[d, r]` span. Gradients flow to them.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is no matrix; [`Error::NotOrthonormal`].
    pub fn new(columns: &Tensor) -> Result<Self> {
        let got = columns.size();
        let &[d, r] = &got[..] else {
            return Err(Error::Shape { name: "rotation".into(), expected: vec![-1, -1], got });
        };
        if r < 1 || r > d {
            return Err(Error::Rank { rank: r, hidden_size: d });
        }
        check_orthonormal("rotation", columns)?;
        Ok(Self { columns: columns.shallow_clone(), gate: None })
    }

    /// Some of the `d` coordinates as they are, without a rotation.
    ///
    /// # Errors
    /// [`Error::Subspace`] if a neuron does not exist; [`Error::Rank`] if none is named.
    pub fn neurons(hidden_size: i64, neurons: Range<i64>, device: Device) -> Result<Self> {
        let length = check_coordinates(&neurons, hidden_size)?;
        let identity = Tensor::eye(hidden_size, (Kind::Float, device));
        let columns = identity.narrow(1, neurons.start, length);
        Ok(Self { columns, gate: None })
    }

    /// The same with the gate `m` `[r]`: 1 takes a coordinate from the source, 0 leaves the base's.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn with_gate(self, gate: Tensor) -> Result<Self> {
        let (expected, got) = (vec![self.columns.size()[1]], gate.size());
        if expected != got {
            return Err(Error::Shape { name: "gate".into(), expected, got });
        }
        Ok(Self { gate: Some(gate), ..self })
    }

    /// The same, restricted to some coordinates of the subspace: two sources can share one rotation and use different coordinates.
    ///
    /// # Errors
    /// [`Error::Subspace`] if a coordinate does not exist; [`Error::Rank`] if none is named.
    pub fn coordinates(&self, coordinates: Range<i64>) -> Result<Self> {
        let length = check_coordinates(&coordinates, self.columns.size()[1])?;
        Ok(Self {
            columns: self.columns.narrow(1, coordinates.start, length),
            gate: self.gate.as_ref().map(|gate| gate.narrow(0, coordinates.start, length)),
        })
    }

    /// `Rᵀ` `[d, r]`.
    pub fn columns(&self) -> &Tensor {
        &self.columns
    }

    /// `m` `[r]`, if it is not 1 everywhere.
    pub fn gate(&self) -> Option<&Tensor> {
        self.gate.as_ref()
    }
}

impl Interchange for SubspaceInterchange {
    fn intervene(&self, base: &Tensor, source: &Tensor) -> Result<Tensor> {
        check_pair(base, source, self.columns.size()[0])?;
        Ok(in_f32(base, |b| {
            let change = (source.to_kind(Kind::Float) - &b).matmul(&self.columns); // R s − R b [.., r]
            let change = match &self.gate {
                Some(gate) => change * gate,
                None => change,
            };
            b + change.matmul(&self.columns.tr())
        }))
    }

    fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        std::iter::once(&mut self.columns).chain(&mut self.gate).collect()
    }
}

/// Checks that a range of coordinates is not empty and lies in `0..rank`; returns its length.
fn check_coordinates(range: &Range<i64>, rank: i64) -> Result<i64> {
    if range.is_empty() {
        return Err(Error::Rank { rank: range.end - range.start, hidden_size: rank });
    }
    if range.start < 0 || range.end > rank {
        let index = if range.start < 0 { range.start } else { range.end - 1 };
        return Err(Error::Subspace { index, rank });
    }
    Ok(range.end - range.start)
}

fn check_pair(base: &Tensor, source: &Tensor, hidden_size: i64) -> Result<()> {
    check_hidden_size(base, hidden_size)?;
    let (expected, got) = (base.size(), source.size());
    if expected != got {
        return Err(Error::Shape { name: "source hidden states".into(), expected, got });
    }
    Ok(())
}
