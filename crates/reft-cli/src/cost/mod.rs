//! The cost of training: measured by `reft bench`, and predicted by `reft plan`.

pub mod bench;
pub mod plan;
pub mod split;
pub mod step_args;
