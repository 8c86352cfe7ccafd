//! Runs of a model whose hidden states are taken from, or put into, other runs.

pub(crate) mod source_states;

pub(crate) mod hooks;

pub(crate) mod accuracy;
pub(crate) mod base_row;
pub(crate) mod base_runs;
