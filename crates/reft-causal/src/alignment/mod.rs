//! Distributed alignment search: alignments that may hold the variables of a causal model, trained and measured.

pub(crate) mod adapter;
pub(crate) mod variable_swap;

pub(crate) mod runs;

pub(crate) mod objective;
