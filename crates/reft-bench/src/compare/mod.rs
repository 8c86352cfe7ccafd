//! The comparison: every method on the same data, with the same budget and seeds.

pub(crate) mod budget;
pub(crate) mod config;
pub(crate) mod sweep;

pub(crate) mod facts;
pub(crate) mod plan;

pub(crate) mod loaded_comparison;

pub(crate) mod cell;
pub(crate) mod run;
pub(crate) mod sharing;
pub(crate) mod sweep_run;
