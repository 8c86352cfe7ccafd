//! A training run: what each step is fed with, the trainer, and what a run writes.

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
