//! `reft inspect`: the facts of an adapter or a model.

pub mod adapter;
pub mod command;
pub mod model;
