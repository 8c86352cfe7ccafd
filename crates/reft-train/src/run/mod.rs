//! A training run: the batches of its steps, the trainer, and the files of a run.

pub(crate) mod order;
pub(crate) mod train_config;

pub(crate) mod feed;
pub(crate) mod share;

pub(crate) mod out_of_memory;
pub(crate) mod resident_memory;
mod step;
pub(crate) mod trainer;

pub(crate) mod progress;

pub(crate) mod checkpoint;
pub(crate) mod run_directory;
