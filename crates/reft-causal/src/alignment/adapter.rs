use std::collections::BTreeMap;
use std::path::Path;

use reft_core::{AlignmentSet, GateKind, Parameter, SubspaceInterchange};
use reft_models::{Adapter, Hooks, Layout, Mode, NoHooks, Result, save_safetensors};
use tch::{Device, Tensor};

/// The alignments that may hold the variables of a causal model (Geiger et al. 2023, arXiv:2303.02536): one, or several.
///
/// It is an [`Adapter`], so a trainer updates and saves it. Without sources it changes nothing:
/// [`InterchangeRuns`](crate::InterchangeRuns) make the swaps.
#[derive(Debug)]
pub enum Alignment {
    /// Coordinates of rotations: learned ones, or random ones if they are not trained.
    Rotated(AlignmentSet),
    /// As [`Self::Rotated`], for alignments of separate trials: no row is swapped by two of them, and the gradient of each is clipped by itself.
    Independent(AlignmentSet),
    /// Coordinates of given subspaces.
    Fixed(Vec<SubspaceInterchange>),
}

impl Alignment {
    /// Name of the tensors' file.
    pub const FILE_NAME: &str = "alignment.safetensors";

    /// The trainable rotations and gates, if there are any.
    pub fn set(&self) -> Option<&AlignmentSet> {
        match self {
            Self::Rotated(set) | Self::Independent(set) => Some(set),
            Self::Fixed(_) => None,
        }
    }

    /// The `d` coordinates of hidden states themselves, without a rotation.
    ///
    /// # Errors
    /// [`reft_core::Error::Rank`] if `d` is 0.
    pub fn neurons(d: i64, device: Device) -> reft_core::Result<Self> {
        Ok(Self::Fixed(vec![SubspaceInterchange::neurons(d, 0..d, device)?]))
    }

    /// The intervention of each alignment with its current parameters; orthonormal maps are evaluated once.
    pub(crate) fn interchanges(
        &self,
        gates: GateKind,
    ) -> reft_core::Result<Vec<SubspaceInterchange>> {
        let whole = |fixed: &SubspaceInterchange| fixed.coordinates(0..fixed.columns().size()[1]);
        match self {
            Self::Rotated(set) | Self::Independent(set) => Ok(set.interchanges(gates)),
            Self::Fixed(fixed) => fixed.iter().map(whole).collect(),
        }
    }

    /// Size of the hidden states `d` of alignment `i`, and its number of coordinates; `None` if there is no such alignment.
    pub(crate) fn sizes(&self, i: usize) -> Option<(i64, i64)> {
        match self {
            Self::Rotated(set) | Self::Independent(set) => {
                (i < set.len() as usize).then(|| (set.hidden_size(), set.rank()))
            }
            Self::Fixed(fixed) => fixed.get(i)?.columns().size2().ok(),
        }
    }
}

impl Adapter for Alignment {
    fn method(&self) -> &str {
        match self {
            Self::Rotated(set) | Self::Independent(set) => set.method().name(),
            Self::Fixed(_) => "interchange",
        }
    }

    fn parameters(&self) -> Vec<Parameter> {
        let mut parameters = self.set().map(AlignmentSet::parameters).unwrap_or_default();
        if let Self::Independent(set) = self {
            parameters.iter_mut().for_each(|parameter| parameter.clip_groups = set.len());
        }
        parameters
    }

    fn hooks<'a>(&'a self, _layout: &Layout, _mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        Ok(Box::new(NoHooks))
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        self.set().map(AlignmentSet::state).unwrap_or_default()
    }

    fn load_state(&self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        Ok(self.set().map_or(Ok(()), |set| set.load_state(state))?)
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for (i, interchange) in self.interchanges(GateKind::Hard)?.iter().enumerate() {
            let rotation = interchange.columns().detach().contiguous();
            tensors.push((format!("{i}.rotation"), rotation)); // Rᵀ [d, r]
            tensors.extend(interchange.gate().map(|m| (format!("{i}.gate"), m.shallow_clone()))); // [r]
        }
        save_safetensors(&dir.join(Self::FILE_NAME), &tensors, None)
    }
}
