//! Steering: a direction of the hidden states is added while a model generates.

mod adapter;
mod direction;

pub use adapter::SteeringAdapter;
pub use direction::{Direction, DirectionKind, last_hidden_states};
