use std::path::Path;

use reft_core::PrincipalComponents;
use reft_models::{Model, Place, Row, Site, load_safetensors};
use tch::{Kind, Tensor};

use crate::{Alignment, Error, LinearProbe, Result, refuse, source_states};

/// How a direction is computed from two sets of hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectionKind {
    /// The mean of the first set minus the mean of the second set.
    Means,
    /// The first principal component of both sets together. It points towards the first set. Its length is the distance of the two means along it.
    PrincipalComponent,
    /// The weights of a linear probe of both sets, scaled to the distance of the two means along them.
    Probe,
}

/// A direction of the hidden states of a site, `[d]` in f32. At strength 1 the direction itself is added.
#[derive(Debug)]
pub struct Direction(Tensor);

impl Direction {
    /// A direction from the hidden states of two sets of texts, `[n, d]` and `[m, d]`.
    ///
    /// # Errors
    /// Errors of [`PrincipalComponents`]; [`Error::OptionValue`] if the two sets have the same mean.
    pub fn between(kind: DirectionKind, positive: &Tensor, negative: &Tensor) -> Result<Self> {
        let mean = |h: &Tensor| h.mean_dim([0i64].as_slice(), false, Kind::Float);
        let difference = mean(positive) - mean(negative); // [d]
        if difference.norm().double_value(&[]) == 0.0 {
            let found = "0: both sets of texts have the same mean hidden state";
            return refuse("direction", found, "texts that differ");
        }
        Ok(Self(match kind {
            DirectionKind::Means => difference,
            DirectionKind::PrincipalComponent => {
                let both = Tensor::cat(&[positive, negative], 0);
                let first = PrincipalComponents::of(&both)?.first(1)?.squeeze_dim(1); // [d]
                &first * first.dot(&difference)
            }
            DirectionKind::Probe => {
                let w = LinearProbe::of(positive, negative)?.weights().to_kind(Kind::Float);
                let unit = &w / w.norm(); // [d]
                &unit * unit.dot(&difference)
            }
        }))
    }

    /// Reads the direction, of length 1, of a trained one-dimensional subspace from the directory of a `reft das` cell.
    ///
    /// # Errors
    /// If there is no subspace, or it has more than one dimension.
    pub fn of_alignment(directory: &Path) -> Result<Self> {
        let path = directory.join(Alignment::FILE_NAME);
        let mut tensors = load_safetensors(&path)?;
        let broken = |reason: String| Error::File { path: path.clone(), reason };
        let rotation = tensors.remove("0.rotation").ok_or_else(|| {
            broken("it has no tensor 0.rotation; expected the directory of a search's cell".into())
        })?;
        match rotation.size()[..] {
            [_, 1] => Ok(Self(rotation.squeeze_dim(1).to_kind(Kind::Float))),
            ref size => Err(broken(format!(
                "its subspace has shape {size:?}, expected [d, 1]; name a cell of rank 1"
            ))),
        }
    }

    /// The direction itself, `[d]`.
    pub fn vector(&self) -> &Tensor {
        &self.0
    }
}

/// The hidden states `[n, d]` of the last token of each row at a site.
///
/// # Errors
/// If the model has no such site.
pub fn last_hidden_states(model: &dyn Model, rows: &[Row], site: Site) -> Result<Tensor> {
    const BATCH: usize = 16;
    let last = rows.iter().map(|row| row.input_ids.len().saturating_sub(1)).collect();
    Ok(source_states(model, rows, &[(Place::whole(site), last)], BATCH)?.remove(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_point_from_the_negative_to_the_positive_texts() -> Result<()> {
        let rows = |x: [f32; 4], y: [f32; 4]| {
            Tensor::stack(&[Tensor::from_slice(&x), Tensor::from_slice(&y)], 1) // [4, 2]
        };
        let positive = rows([3.0, 3.0, 3.0, 3.0], [1.5, 0.5, 1.0, 1.0]);
        let negative = rows([-1.0, -1.0, -1.0, -1.0], [0.5, -0.5, 0.0, 0.0]);
        let means = Direction::between(DirectionKind::Means, &positive, &negative)?;
        assert_eq!([0, 1].map(|i| means.vector().double_value(&[i])), [4.0, 1.0]);
        // by hand: the scatter of the eight is [[32, 8], [8, 3]], so the tangent of twice its axis' angle is 16/29
        let component =
            Direction::between(DirectionKind::PrincipalComponent, &positive, &negative)?;
        let angle = 0.5 * (16.0f64 / 29.0).atan();
        let along = 4.0 * angle.cos() + angle.sin();
        for (i, expected) in [along * angle.cos(), along * angle.sin()].into_iter().enumerate() {
            let found = component.vector().double_value(&[i as i64]);
            assert!((found - expected).abs() < 1e-5, "{i}: {found} {expected}"); // f32
        }
        // it is as long as the means are apart along its weights
        let probe = Direction::between(DirectionKind::Probe, &positive, &negative)?;
        let probe = [0, 1].map(|i| probe.vector().double_value(&[i]));
        let unit = LinearProbe::of(&positive, &negative)?.weights().to_kind(Kind::Float);
        let unit = &unit / unit.norm();
        let along = unit.dot(&Tensor::from_slice(&[4f32, 1.0])).double_value(&[]);
        for (i, found) in probe.into_iter().enumerate() {
            let expected = along * unit.double_value(&[i as i64]);
            assert!((found - expected).abs() < 1e-5, "{i}: {found} {expected}"); // f32
        }
        assert!(probe[0] > probe[1] && probe[1] > 0.0, "{probe:?}");
        assert!(Direction::between(DirectionKind::Means, &positive, &positive).is_err());
        Ok(())
    }
}
