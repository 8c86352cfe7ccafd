//! Interchange runs on models, and the training of alignments.

mod alignment;
mod interchange;
