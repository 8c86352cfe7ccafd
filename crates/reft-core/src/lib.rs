//! Representation fine-tuning (ReFT) without a model: orthonormal maps, interventions and token positions on libtorch tensors.
//!
//! **LoReFT** edits a hidden state `h` inside a learned subspace, `Φ(h) = h + Rᵀ(W h + b − R h)`, where the rows of `R` are
//! orthonormal (Wu et al. 2024, arXiv:2404.03592). Shape letters: `n` interventions, `d` hidden size, `r` dimension of the subspace.
//!
//! ```
//! use reft_core::{Intervention, InterventionConfig, InterventionSet, Method, Subspace};
//! use tch::{Device, Kind, Tensor};
//!
//! # fn main() -> reft_core::Result<()> {
//! // Three LoReFT interventions of rank 4 on hidden states of size 64; they start as the identity.
//! let set = InterventionSet::new(InterventionConfig::new(Method::Loreft, 4), 3, 64, Device::Cpu)?;
//! let hidden_states = Tensor::randn([2, 5, 64], (Kind::Float, Device::Cpu));
//! let edited = set.edits(false)[0].intervene(&hidden_states, &Subspace::Whole)?;
//! assert!((edited - hidden_states).abs().max().double_value(&[]) < 1e-5);
//! # Ok(())
//! # }
//! ```

mod error;
mod named;

mod householder;
mod orthonormal;
mod qr;

mod edit;
mod intervention;
mod intervention_set;
mod method;
mod parameter;
mod positions;

mod alignment;
mod constant_edit;
mod coordinate_gate;
mod interchange;
mod principal_components;

pub use alignment::{AlignmentMethod, AlignmentSet, GateKind};
pub use constant_edit::ConstantEdit;
pub use coordinate_gate::{Annealing, boundary_gate, sigmoid_gate};
pub use edit::Edit;
pub use error::{Error, Result};
pub use householder::Householder;
pub use interchange::{Interchange, SubspaceInterchange, VanillaInterchange};
pub use intervention::{Intervention, Subspace, check_hidden_size, in_f32};
pub use intervention_set::{InterventionSet, InterventionTensors};
pub use method::{Activation, Init, InterventionConfig, Method};
pub use orthonormal::{MapKind, OrthonormalMap, orthonormality_error, random_columns};
pub use parameter::Parameter;
pub use positions::{PositionGroup, PositionRule, Positions, PromptPositions};
pub use principal_components::PrincipalComponents;
pub use qr::Qr;
