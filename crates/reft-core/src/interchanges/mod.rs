//! Edits with a source: interchange interventions and the alignments that are searched for.

pub(crate) mod alignment;
pub(crate) mod interchange;
