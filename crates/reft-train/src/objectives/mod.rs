//! Objectives beside the next token.

pub(crate) mod measures;
pub(crate) mod metric;
pub(crate) mod options;

pub(crate) mod head_objective;
pub(crate) mod keeping_close;
pub(crate) mod preference;
pub(crate) mod reft_r1;
