use tch::{Kind, Tensor};

use crate::{Error, Intervention, Result, Subspace, check_hidden_size, in_f32};

/// Edits that remove a direction `v` from the hidden state.
///
/// With a [`Subspace::Masked`] of length `d` only those coordinates of the hidden state are edited.
#[derive(Debug)]
pub struct Removal {
    direction: Tensor, // [d]
    only_towards: bool,
    bias: Option<Tensor>, // [1]
}

impl Removal {
    /// `Φ(h) = h − v̂ v̂ᵀ h` with `v̂ = v/‖v‖` for `v` `[d]`: directional ablation (Arditi et al. 2024, arXiv:2406.11717).
    ///
    /// # Errors
    /// [`Error::Shape`] unless `v` is a vector.
    pub fn of(direction: &Tensor) -> Result<Self> {
        Self::new(direction, false)
    }

    /// `Φ(h) = h − v̂ relu(v̂ᵀ h)`: removes the component of `h` along `v` `[d]` only if it is positive. RePS
    /// steers away from a concept in this way (Wu et al. 2025, arXiv:2505.20809).
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn towards(direction: &Tensor) -> Result<Self> {
        Self::new(direction, true)
    }

    /// `Φ(h) = h − relu(vᵀ h + b)/‖v‖² v` with a bias `b` `[1]`: [`Self::towards`] with a trained threshold.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn past(direction: &Tensor, bias: &Tensor) -> Result<Self> {
        Ok(Self { bias: Some(bias.to_kind(Kind::Float)), ..Self::towards(direction)? })
    }

    fn new(direction: &Tensor, only_towards: bool) -> Result<Self> {
        let got = direction.size();
        if got.len() != 1 {
            return Err(Error::Shape { name: "direction".into(), expected: vec![-1], got });
        }
        Ok(Self { direction: direction.to_kind(Kind::Float), only_towards, bias: None })
    }
}

impl Intervention for Removal {
    fn intervene(&self, base: &Tensor, subspace: &Subspace) -> Result<Tensor> {
        check_hidden_size(base, self.direction.size()[0])?;
        Ok(in_f32(base, |h| {
            let v = &self.direction;
            let along = h.matmul(v).unsqueeze(-1); // vᵀ h [.., 1]
            let along = self.bias.as_ref().map_or(along.shallow_clone(), |bias| &along + bias);
            let along = if self.only_towards { along.relu() } else { along };
            let taken = along / v.dot(v) * v; // [.., d]
            match subspace {
                Subspace::Whole => h - taken,
                Subspace::Masked(mask) => h - taken * mask,
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_has_nothing_of_the_direction() -> Result<()> {
        let v = Tensor::from_slice(&[3f32, 0.0, 4.0]);
        // along v/5: 2 and −1
        let h = Tensor::from_slice(&[1.2f32, 7.0, 1.6, -0.6, 1.0, -0.8]).view([1, 2, 3]);
        let rows = |edited: Tensor| Vec::<f64>::try_from(edited.view([-1]).to_kind(Kind::Double));
        let close = |found: Vec<f64>, expected: [f64; 6]| {
            let differ = |(a, b): (&f64, f64)| (a - b).abs() > 1e-6; // f32
            assert!(!found.iter().zip(expected).any(differ), "{found:?} {expected:?}");
        };
        let all = Removal::of(&v)?.intervene(&h, &Subspace::Whole)?;
        close(rows(all).expect("numbers"), [0.0, 7.0, 0.0, 0.0, 1.0, 0.0]);
        let towards = Removal::towards(&v)?.intervene(&h, &Subspace::Whole)?;
        close(rows(towards).expect("numbers"), [0.0, 7.0, 0.0, -0.6, 1.0, -0.8]);
        // vᵀ h is 10 and −5; the bias makes it 20 and 5: 20/25 and 5/25 of v are removed
        let past = Removal::past(&v, &Tensor::from_slice(&[10f32]))?;
        let past = past.intervene(&h, &Subspace::Whole)?;
        close(rows(past).expect("numbers"), [-1.2, 7.0, -1.6, -1.2, 1.0, -1.6]);
        assert!(Removal::of(&h).is_err());
        assert!(
            Removal::of(&Tensor::from_slice(&[1f32]))
                .is_ok_and(|it| it.intervene(&h, &Subspace::Whole).is_err())
        );
        Ok(())
    }
}
