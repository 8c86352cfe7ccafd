//! Alignment search: looks for a variable at sites, tokens and ranks of a model, with controls, and reports the results.

pub(crate) mod options;

pub(crate) mod searched;
pub(crate) mod tasks;

pub(crate) mod cell;
pub(crate) mod subspace;

pub(crate) mod group;

pub(crate) mod das_search;
pub(crate) mod report;
