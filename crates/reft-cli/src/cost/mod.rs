//! The cost of training: measured, and foretold.

pub mod bench;
pub mod plan;
pub mod split;
pub mod step_args;
