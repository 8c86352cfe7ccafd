//! The formats of data files. Nothing here knows the meaning of a row.

pub(crate) mod contents;

pub(crate) mod delimited;
pub(crate) mod json;
pub(crate) mod parquet;

pub(crate) mod table;

pub(crate) mod hub_dataset;
