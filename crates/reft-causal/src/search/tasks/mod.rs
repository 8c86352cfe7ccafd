//! Tasks from files: texts and their causal model, or a network that is trained for the purpose; and their counterfactuals as tokens.

pub(crate) mod recipe;

pub(crate) mod das_task;
pub(crate) mod equality;
pub(crate) mod failures;
pub(crate) mod position;

pub(crate) mod pairs;
