//! `reft eval`: how well a model does on data.

pub mod command;
pub mod head;
