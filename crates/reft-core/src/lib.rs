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
mod mixed_precision;
mod named;
mod options;
mod parameter;
mod positions;

mod maps;

mod edits;

mod interchanges;

pub use edits::constant_edit::ConstantEdit;
pub use edits::detection::Detection;
pub use edits::intervention::{Intervention, Subspace, check_hidden_size};
pub use edits::intervention_set::{InterventionSet, InterventionTensors};
pub use edits::loreft::{Edit, LinearEdit};
pub use edits::method::{Activation, Init, InterventionConfig, Method};
pub use edits::removal::Removal;
pub use error::{Error, Result};
pub use interchanges::alignment::{
    AlignmentMethod, AlignmentSet, Annealing, GateKind, boundary_gate, sigmoid_gate,
};
pub use interchanges::interchange::{Interchange, SubspaceInterchange, VanillaInterchange};
pub use maps::householder::Householder;
pub use maps::orthonormal::{MapKind, OrthonormalMap, orthonormality_error, random_columns};
pub use maps::principal_components::PrincipalComponents;
pub use maps::qr::Qr;
pub use mixed_precision::{autocast, in_f32};
pub use options::{DeclaredOptions, LARGEST_COUNT, OptionDeclaration, OptionKind, Texts};
pub use parameter::Parameter;
pub use positions::{PositionRule, Positions, PromptPositions, TokenGroup};
