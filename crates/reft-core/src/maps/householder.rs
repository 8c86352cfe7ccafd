use tch::{Device, Kind, Tensor};

use crate::{Error, OrthonormalMap, Result};

/// Products of Householder reflections in compact WY form.
///
/// With `V = tril(X, −1) + I_{d×r}` the columns of the free matrix `X` give reflections `H_j = I − 2 v_j v_jᵀ / |v_j|²`, and
///
/// ```text
/// H₁ H₂ … H_r = I − V T Vᵀ,   T⁻¹ = striu(VᵀV) + ½ diag(VᵀV)
/// Rᵀ = −Q₀ (E − V T V[:r]ᵀ),  E = I_{d×r}
/// ```
///
/// (Schreiber and Van Loan 1989; Joffrain et al. 2006 for `T⁻¹`). It takes two thin products and one r×r triangular solve per
/// matrix, batches over matrices, and autograd goes through it. `X = 0` gives `−(H₁ … H_r) E = E`, hence `Rᵀ = Q₀ E`.
///
/// `Q₀` is a d×d orthogonal matrix. Its first columns are the start of the map. It is kept as reflections
/// too, never as a d×d matrix: memory is O(d·k) for a start given by k columns. This is the map of PyTorch's
/// `parametrizations.orthogonal` (Householder, trivialised), whose d×d base is our `Q₀`. PyTorch trains the diagonal, and
/// weight decay destroys it; here the diagonal is the constant −1.
#[derive(Debug)]
pub struct Householder {
    raw: Tensor, // X [n, d, r]
    base: Reflections,
}

/// `Q₀ = H₁ … H_k·diag(signs)`, with signs 1 beyond the first k.
#[derive(Debug)]
struct Reflections {
    v: Tensor,     // [n, d, k], unit columns, lower trapezoidal
    t: Tensor,     // [n, k, k], upper triangular
    signs: Tensor, // [n, k], ±1
}

impl Householder {
    /// A map whose [`OrthonormalMap::columns`] are `columns` `[n, d, r]` at first.
    pub fn starting_at(columns: &Tensor) -> Self {
        let r = columns.size()[2];
        Self::on_base(columns, r)
    }

    /// A map to r columns that starts at the first r columns of `base`, `[n, d, k]` with orthonormal columns and `r ≤ k ≤ d`.
    ///
    /// The other columns of `base` do not change the start of the map, but they change the direction of a step of `X`:
    /// with `k = d` the map reproduces any trivialised orthogonal parametrisation step by step.
    ///
    /// # Panics
    /// If `base` is not of three dimensions, or `r > k`.
    pub fn on_base(base: &Tensor, r: i64) -> Self {
        let (n, d, k) = base.size3().expect("invariant: base is [n, d, k]");
        assert!(r <= k && k <= d, "invariant: r <= k <= d, got r {r}, k {k}, d {d}");
        let raw = Tensor::zeros([n, d, r], (Kind::Float, base.device())).set_requires_grad(true);
        Self { raw, base: Reflections::of(base) }
    }

    pub(crate) fn restore(raw: Tensor, constant: &dyn Fn(&str) -> Option<Tensor>) -> Result<Self> {
        let find = |name: &str| {
            let missing = || Error::MissingTensor { name: name.to_owned(), method: "householder" };
            Ok(constant(name).ok_or_else(missing)?.to_device(raw.device()))
        };
        let (v, signs) = (find("base_reflections")?, find("base_signs")?);
        let (n, d, r) = raw.size3().expect("invariant: raw is [n, d, r]");
        let k = signs.size().last().map_or(r, |&k| k.clamp(r, d));
        let check = |name: &str, got: Vec<i64>, expected: Vec<i64>| match got == expected {
            true => Ok(()),
            false => Err(Error::Shape { name: name.to_owned(), expected, got }),
        };
        check("base_reflections", v.size(), vec![n, d, k])?;
        check("base_signs", signs.size(), vec![n, k])?;
        Ok(Self { raw, base: Reflections::new(v, signs) })
    }
}

impl OrthonormalMap for Householder {
    fn columns(&self) -> Tensor {
        let (_, d, r) = self.raw.size3().expect("invariant: raw is [n, d, r]");
        let e = Tensor::eye_m(d, r, (Kind::Float, self.raw.device())); // E [d, r]
        let v = unit_columns(&(self.raw.tril(-1) + &e)); // V [n, d, r]
        let top = v.narrow(1, 0, r).transpose(1, 2); // V[:r]ᵀ [n, r, r]
        let t_top = Tensor::linalg_solve_triangular(&compact_inverse(&v), &top, true, true, false); // T V[:r]ᵀ
        -self.base.apply(&(e - v.matmul(&t_top)))
    }

    fn raw(&self) -> &Tensor {
        &self.raw
    }

    fn constants(&self) -> Vec<(&'static str, Tensor)> {
        vec![
            ("base_reflections", self.base.v.shallow_clone()),
            ("base_signs", self.base.signs.shallow_clone()),
        ]
    }
}

impl Reflections {
    /// Factors a matrix with orthonormal columns `[n, d, k]`: `base = H₁ … H_k E·diag(signs)`.
    fn of(base: &Tensor) -> Self {
        let (_, d, k) = base.size3().expect("invariant: base is [n, d, k]");
        let device = base.device();
        let exact = base.detach().to_device(Device::Cpu).to_kind(Kind::Double);
        let (packed, tau) = exact.geqrf();
        let e = Tensor::eye_m(d, k, (Kind::Double, Device::Cpu));
        let v = unit_columns(&(packed.tril(-1) + e));
        // LAPACK skips a column (tau = 0) with nothing to reflect. Here its reflection flips its own axis, so the sign changes.
        let flipped = tau.eq(0.0).to_kind(Kind::Double) * -2.0 + 1.0;
        let signs = crate::maps::orthonormal::sign_of_diagonal(&packed.narrow(1, 0, k)) * flipped;
        let single = |x: Tensor| x.to_kind(Kind::Float).to_device(device);
        Self::new(single(v), single(signs))
    }

    /// Computes `T` from the f32 `v` that checkpoints keep, so that a loaded checkpoint gives the same `T` bit for bit.
    fn new(v: Tensor, signs: Tensor) -> Self {
        let upper = compact_inverse(&v.to_kind(Kind::Double)); // T⁻¹ [n, k, k]
        let identity = Tensor::eye(v.size()[2], (Kind::Double, v.device())).expand_as(&upper);
        let t = Tensor::linalg_solve_triangular(&upper, &identity, true, true, false);
        Self { v, t: t.to_kind(Kind::Float), signs }
    }

    /// `Q₀ X` for `X` `[n, d, r]`.
    fn apply(&self, x: &Tensor) -> Tensor {
        let k = self.signs.size()[1];
        let d = x.size()[1];
        let signed = x.narrow(1, 0, k) * self.signs.unsqueeze(-1);
        let x = Tensor::cat(&[signed, x.narrow(1, k, d - k)], 1);
        let coordinates = self.t.matmul(&self.v.transpose(1, 2).matmul(&x)); // T VᵀX [n, k, r]
        x - self.v.matmul(&coordinates)
    }
}

/// `V` with columns of length 1: the reflections are the same, and `VᵀV` stays well scaled however far `X` has gone.
fn unit_columns(v: &Tensor) -> Tensor {
    v / v.square().sum_dim_intlist([-2i64].as_slice(), true, v.kind()).sqrt()
}

/// `T⁻¹ = striu(VᵀV) + ½ I` for unit columns `V` `[n, d, k]`.
fn compact_inverse(v: &Tensor) -> Tensor {
    let k = v.size()[2];
    let gram = v.transpose(1, 2).matmul(v);
    gram.triu(1) + Tensor::eye(k, (v.kind(), v.device())) * 0.5
}
