use tch::{Kind, Tensor};

use crate::maps::orthonormal::{OrthonormalMap, sign_of_diagonal};

/// `Rᵀ = Q·diag(sign(diag(U)))` for the thin QR decomposition `X = Q U` of a free matrix `X`.
///
/// The signs make the map continuous, and the identity on matrices that are orthonormal already.
/// The gradient is libtorch's. Where `XᵀX = I` it equals the gradient of the projection onto orthonormal matrices.
#[derive(Debug)]
pub struct Qr {
    pub(crate) raw: Tensor, // X [n, d, r]
}

impl Qr {
    /// A map whose [`OrthonormalMap::columns`] are `columns` `[n, d, r]` at first.
    pub fn starting_at(columns: &Tensor) -> Self {
        let columns = orthonormalize(&columns.detach().to_kind(Kind::Double));
        // LAPACK's Q is column-major, a checkpoint row-major; sums must run in the same order before and after a resume.
        Self { raw: columns.to_kind(Kind::Float).contiguous().set_requires_grad(true) }
    }
}

impl OrthonormalMap for Qr {
    fn columns(&self) -> Tensor {
        orthonormalize(&self.raw)
    }

    fn raw(&self) -> &Tensor {
        &self.raw
    }

    fn constants(&self) -> Vec<(&'static str, Tensor)> {
        Vec::new()
    }
}

fn orthonormalize(x: &Tensor) -> Tensor {
    let (q, upper) = Tensor::linalg_qr(x, "reduced");
    q * sign_of_diagonal(&upper).unsqueeze(-2)
}
