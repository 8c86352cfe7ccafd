//! Distributed alignment search: does a model keep a variable of a causal model in a subspace of its hidden states?

mod accuracy;
mod alignment_adapter;
mod causal_model;
mod hierarchical_equality;
mod network_weights;
mod side_by_side;
mod source_states;

pub use accuracy::{Accuracy, accuracy, likeliest};
pub use alignment_adapter::{Alignment, AlignmentAdapter, VariableSwap};
pub use causal_model::{CausalModel, Counterfactual, Variable};
pub use hierarchical_equality::HierarchicalEquality;
pub use network_weights::NetworkWeights;
pub use side_by_side::SideBySide;
pub use source_states::{SourceToken, source_states};
