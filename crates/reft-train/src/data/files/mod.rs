//! Data files: what people have rows in. Nothing here knows what a row means.

pub(crate) mod contents;

pub(crate) mod delimited;
pub(crate) mod json;
pub(crate) mod parquet;

pub(crate) mod table;

pub(crate) mod hub_dataset;
