//! Methods whose adapter is the model's own weights, or some of them.

pub(crate) mod bitfit;
pub(crate) mod full;
pub(crate) mod in_weights;
