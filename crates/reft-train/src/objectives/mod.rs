//! Objectives beside the next token.

pub(crate) mod options;

pub(crate) mod keeping_close;
pub(crate) mod preference;
