//! The meaning of rows of data files.

pub(crate) mod columns;
pub(crate) mod form;

pub(crate) mod conversation;
pub(crate) mod preference;
pub(crate) mod record;

pub(crate) mod data_source;
