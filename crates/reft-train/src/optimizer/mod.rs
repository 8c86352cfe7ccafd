//! From gradients to an update.

pub(crate) mod adamw;
pub(crate) mod clip;
pub(crate) mod loss_scaler;
pub(crate) mod schedule;
