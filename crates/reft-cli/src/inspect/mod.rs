//! `reft inspect`: what an adapter or a model is.

pub mod adapter;
pub mod command;
pub mod model;
