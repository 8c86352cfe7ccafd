//! `reft steer`: directions that are made, read or trained, at a strength.

pub mod command;
mod detection;
mod sources;
mod sweep;
