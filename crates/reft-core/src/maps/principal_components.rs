use tch::{Kind, Tensor};

use crate::{Error, Result};

/// The principal components of hidden states, as the columns of an untrained rotation.
///
/// With hidden states as rows of `X` and their mean `μ`, the singular value decomposition `X − μ = U S Vᵀ` gives the directions `V` in
/// the order of the variance `S²/(m − 1)` along them. Interchange in the first k is
/// [`SubspaceInterchange::new`](crate::SubspaceInterchange::new) on [`Self::first`]: `μ` cancels between base and source.
#[derive(Debug)]
pub struct PrincipalComponents {
    columns: Tensor,  // [d, k], by falling variance
    mean: Tensor,     // [d]
    variance: Tensor, // [k]
}

impl PrincipalComponents {
    /// The components of `m` hidden states `[m, d]`. Their number is `min(m − 1, d)`: the hidden states determine no more.
    ///
    /// Each component's sign is such that its largest entry is positive.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are at least two hidden states.
    pub fn of(hidden_states: &Tensor) -> Result<Self> {
        let got = hidden_states.size();
        let &[m, d] = &got[..] else {
            return Err(Error::Shape { name: "hidden states".into(), expected: vec![-1, -1], got });
        };
        if m < 2 {
            return Err(Error::Shape { name: "hidden states".into(), expected: vec![2, d], got });
        }
        let x = hidden_states.detach().to_kind(Kind::Double);
        let mean = x.mean_dim([0i64].as_slice(), true, Kind::Double); // μ [1, d]
        let (_, s, v) = (x - &mean).svd(true, true);
        let k = (m - 1).min(d);
        let columns = v.narrow(1, 0, k); // V [d, k]
        let largest = columns.abs().argmax(0, true); // [1, k]
        let signs = columns.gather(0, &largest, false).sign();
        let single = |x: Tensor| x.to_kind(Kind::Float).contiguous();
        Ok(Self {
            columns: single(columns * signs),
            mean: single(mean.squeeze_dim(0)),
            variance: single(s.narrow(0, 0, k).square() / (m - 1) as f64),
        })
    }

    /// The first `k` components, `[d, k]`, orthonormal.
    ///
    /// # Errors
    /// [`Error::Rank`] if there are fewer than `k`, or `k` is 0.
    pub fn first(&self, k: i64) -> Result<Tensor> {
        let available = self.columns.size()[1];
        if k < 1 || k > available {
            return Err(Error::Rank { rank: k, hidden_size: available });
        }
        Ok(self.columns.narrow(1, 0, k))
    }

    /// The mean `μ` `[d]`: mean ablation replaces a hidden state with it.
    pub fn mean(&self) -> &Tensor {
        &self.mean
    }

    /// The variance along each component, falling: `[components]`.
    pub fn variance(&self) -> &Tensor {
        &self.variance
    }
}
