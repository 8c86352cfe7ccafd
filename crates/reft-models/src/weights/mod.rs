//! Weights: how a checkpoint is read, and how its matrices are held.

pub(crate) mod checkpoint;
pub(crate) mod quantised;
pub(crate) mod quick_products;
pub(crate) mod quick_rows;
pub(crate) mod send;
pub(crate) mod shards;
pub(crate) mod weight;
