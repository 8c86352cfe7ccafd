//! Caches the frozen model's work: activations before the first point that a method changes are computed once.

pub(crate) mod frozen_row;
pub(crate) mod frozen_store;
pub(crate) mod groups;
pub(crate) mod reference;
pub(crate) mod spill_file;
