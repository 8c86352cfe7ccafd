//! `reft export`: models and adapters in the files of other programs.

mod adapter;
pub mod command;
mod model;
