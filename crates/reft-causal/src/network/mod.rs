//! A plain network, and a textbook task whose causal model it learns.

pub(crate) mod feed_forward;

pub(crate) mod hierarchical_equality;
