//! The names that pyreft 0.1.0 gives to classes and tensors in the directories that it saves.

use reft_core::Method;

/// Its classes of interventions, and the edits that they compute.
pub(crate) const CLASSES: [(&str, Method); 6] = [
    ("LoreftIntervention", Method::Loreft),
    ("NoreftIntervention", Method::Noreft),
    ("ConsreftIntervention", Method::Consreft),
    ("LobireftIntervention", Method::Lobireft),
    ("NodireftIntervention", Method::Direft),
    ("DireftIntervention", Method::DireftOrth),
];

/// The module that the classes are in.
pub(crate) const MODULE: &str = "pyreft.interventions";

/// The free matrix `[d, r]` that torch's orthogonal parametrisation trains.
pub(crate) const RAW: &str = "rotate_layer.parametrizations.weight.original";

/// The orthogonal matrix `[d, d]` that the parametrisation starts at.
pub(crate) const BASE: &str = "rotate_layer.parametrizations.weight.0.base";

/// Constants that every class but LoReFT's keeps beside its tensors: the size of the hidden state, twice.
pub(crate) const SIZES: [&str; 2] = ["embed_dim", "interchange_dim"];
