//! Weights: reading a checkpoint, and the storage of its matrices.

pub(crate) mod checkpoint;
pub(crate) mod quantised;
pub(crate) mod quick_products;
pub(crate) mod quick_rows;
pub(crate) mod send;
pub(crate) mod shards;
pub(crate) mod weight;
