use std::collections::BTreeMap;
use std::fmt::Debug;

use tch::{Kind, Tensor};

use crate::{Error, Householder, Parameter, Qr, Result, names};

/// How `n` trainable matrices are mapped to matrices with orthonormal columns.
///
/// All matrices are mapped at once: one call per step serves every layer.
pub trait OrthonormalMap: Debug + Send {
    /// `Rᵀ` of every matrix: `[n, d, r]`, columns orthonormal, differentiable in [`Self::raw`].
    fn columns(&self) -> Tensor;

    /// The free tensor that an optimizer updates, `[n, d, r]`. Weight decay has no meaning for it.
    fn raw(&self) -> &Tensor;

    /// The map's constants, by name, a row or matrix for each of the `n` maps (`[n, ..]`): a checkpoint must keep them beside [`Self::raw`].
    fn constants(&self) -> Vec<(&'static str, Tensor)>;
}

/// Which [`OrthonormalMap`] is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MapKind {
    /// [`Householder`]: a product of reflections in compact WY form.
    #[default]
    Householder,
    /// [`Qr`]: the Q of a thin QR decomposition, signs fixed.
    Qr,
}

names!(MapKind, "orthonormal map", Error, { Householder => "householder", Qr => "qr" });

impl MapKind {
    /// A map that starts at `columns`, `[n, d, r]`.
    ///
    /// # Errors
    /// [`Error::NotOrthonormal`] if the columns are not orthonormal up to rounding.
    pub fn starting_at(self, columns: &Tensor) -> Result<Box<dyn OrthonormalMap>> {
        check_orthonormal("rotation", columns)?;
        Ok(match self {
            Self::Householder => Box::new(Householder::starting_at(columns)),
            Self::Qr => Box::new(Qr::starting_at(columns)),
        })
    }

    /// Restores a map from a checkpoint bit for bit: `leaf` `[n, d, r]` holds [`OrthonormalMap::raw`], `constant` finds
    /// [`OrthonormalMap::constants`] by name.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] or [`Error::Shape`] if one of the constants is missing or does not fit the leaf.
    ///
    /// # Panics
    /// If the leaf is not of three dimensions.
    pub fn restore(
        self,
        leaf: Tensor,
        constant: &dyn Fn(&str) -> Option<Tensor>,
    ) -> Result<Box<dyn OrthonormalMap>> {
        Ok(match self {
            Self::Householder => Box::new(Householder::restore(leaf, constant)?),
            Self::Qr => Box::new(Qr { raw: leaf }),
        })
    }
}

/// The name of the free tensor in a checkpoint.
pub(crate) const RAW: &str = "rotation.raw";

/// The constants of a map that a checkpoint keeps beside [`RAW`], by name.
pub(crate) fn constants_of(map: &dyn OrthonormalMap) -> impl Iterator<Item = (String, Tensor)> {
    map.constants().into_iter().map(|(name, c)| (format!("rotation.{name}"), c.copy()))
}

/// Restores the state of a checkpoint: [`RAW`], the constants of a map, and other leaves.
///
/// The values are copied into the leaves, so an optimizer that holds a leaf sees the change.
///
/// # Errors
/// [`Error::MissingTensor`], [`Error::UnexpectedTensor`] or [`Error::Shape`], by name. After an error nothing is changed.
pub(crate) fn load_state(
    state: &BTreeMap<String, Tensor>,
    leaves: Vec<Parameter>,
    map: Option<(MapKind, &mut Box<dyn OrthonormalMap>)>,
    method: &'static str,
) -> Result<()> {
    let mut known: Vec<String> = leaves.iter().map(|leaf| leaf.name.clone()).collect();
    known.extend(map.iter().flat_map(|(_, map)| constants_of(&***map)).map(|(name, _)| name));
    if let Some(name) = state.keys().find(|name| !known.contains(name)) {
        return Err(Error::UnexpectedTensor { name: name.clone(), method });
    }
    if let Some(name) = known.into_iter().find(|name| !state.contains_key(name)) {
        return Err(Error::MissingTensor { name, method });
    }
    for Parameter { name, tensor, .. } in &leaves {
        let (expected, got) = (tensor.size(), state[name].size());
        if expected != got {
            return Err(Error::Shape { name: name.clone(), expected, got });
        }
    }
    if let Some((kind, map)) = map {
        let constant = |name: &str| state.get(&format!("rotation.{name}")).map(Tensor::copy);
        *map = kind.restore(map.raw().shallow_clone(), &constant)?;
    }
    tch::no_grad(|| {
        for Parameter { name, mut tensor, .. } in leaves {
            tensor.copy_(&state[&name]);
        }
    });
    Ok(())
}

/// Random matrices with orthonormal columns, `[n, d, r]` in f32, uniformly distributed, from libtorch's generator.
pub fn random_columns(n: i64, d: i64, r: i64, device: tch::Device) -> Tensor {
    let gaussian = Tensor::randn([n, d, r], (Kind::Double, tch::Device::Cpu));
    let (q, upper) = Tensor::linalg_qr(&gaussian, "reduced");
    (q * sign_of_diagonal(&upper).unsqueeze(-2)).to_kind(Kind::Float).to_device(device)
}

/// Largest entry of `|RᵀR − I|` over all matrices of `columns`, `[.., d, r]`: 0 for orthonormal columns.
pub fn orthonormality_error(columns: &Tensor) -> f64 {
    let columns = columns.detach().to_kind(Kind::Double);
    let r = columns.size()[columns.dim() - 1];
    let gram = columns.transpose(-2, -1).matmul(&columns);
    (gram - Tensor::eye(r, (Kind::Double, columns.device()))).abs().max().double_value(&[])
}

/// Refuses matrices whose columns are not orthonormal; NaN is refused too.
pub(crate) fn check_orthonormal(name: &str, columns: &Tensor) -> Result<()> {
    // A bf16 file rounds entries of R by up to 2⁻⁹ of their size: R is then re-orthonormalised on loading.
    const LIMIT: f64 = 2e-2;
    let error = orthonormality_error(columns);
    if error.is_nan() || error > LIMIT {
        return Err(Error::NotOrthonormal { name: name.to_owned(), error, limit: LIMIT });
    }
    Ok(())
}

/// ±1 for each entry of the diagonals of `[.., r, r]`; 0 counts as positive.
pub(crate) fn sign_of_diagonal(upper: &Tensor) -> Tensor {
    let diagonal = upper.detach().diagonal(0, -2, -1);
    diagonal.ge(0.0).to_kind(upper.kind()) * 2.0 - 1.0
}
