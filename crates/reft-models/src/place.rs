use std::fmt;
use std::ops::Range;

use tch::Tensor;

use crate::{Component, Error, Result, Site};

/// The hidden state of a site, or a range of its coordinates. Interchange interventions read and replace it.
///
/// At `o_proj` and `down_proj` it is the input of the projection (the concatenated heads; the MLP's neurons). The output is
/// another site, `attention_output` or `mlp_output`. At the other projections it is the output.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The site.
    pub site: Site,
    /// The coordinates; `None`: all.
    pub coordinates: Option<Range<i64>>,
}

impl Place {
    /// The whole hidden state of a site.
    pub fn whole(site: Site) -> Self {
        Self { site, coordinates: None }
    }

    /// The output of one attention head, before the output projection mixes the heads.
    pub fn head(layer: usize, head: i64, head_dim: i64) -> Self {
        let site = Site { layer, component: Component::Output };
        Self { site, coordinates: Some(head * head_dim..(head + 1) * head_dim) }
    }

    /// Number of coordinates, if the site has `width` of them.
    ///
    /// # Errors
    /// [`Error::Coordinates`] if it names a coordinate that the site does not have.
    pub fn size(&self, width: i64) -> Result<i64> {
        match &self.coordinates {
            None => Ok(width),
            Some(range) if 0 <= range.start && range.start < range.end && range.end <= width => {
                Ok(range.end - range.start)
            }
            Some(range) => {
                Err(Error::Coordinates { place: self.clone(), found: range.clone(), width })
            }
        }
    }

    /// Its coordinates of hidden states `[m, width]`.
    ///
    /// # Errors
    /// [`Error::Coordinates`].
    pub fn read(&self, h: &Tensor) -> Result<Tensor> {
        let width = h.size().last().copied().unwrap_or(0);
        let size = self.size(width)?;
        Ok(match &self.coordinates {
            None => h.shallow_clone(),
            Some(range) => h.narrow(-1, range.start, size),
        })
    }

    /// Hidden states `[m, width]` with other values in its coordinates; `h` is left as it is.
    pub fn replace(&self, h: &Tensor, new: Tensor) -> Tensor {
        match &self.coordinates {
            None => new,
            Some(range) => h.slice_scatter(&new, -1, range.start, range.end, 1),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.site.fmt(f)?;
        match &self.coordinates {
            None => Ok(()),
            Some(range) => write!(f, " [{}..{}]", range.start, range.end),
        }
    }
}
