//! Interchange runs on models, and the training of alignments.

mod alignment;
mod interchange;
#[path = "../../../reft-models/tests/models/oracle/mod.rs"]
mod oracle;
