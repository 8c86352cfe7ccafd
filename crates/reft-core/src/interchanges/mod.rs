//! Edits with a source: interchange interventions and learned alignments.

pub(crate) mod alignment;
pub(crate) mod interchange;
