//! Edits of hidden states: LoReFT and its family.

pub(crate) mod constant_edit;
pub(crate) mod detection;
pub(crate) mod intervention;
pub(crate) mod intervention_set;
pub(crate) mod loreft;
pub(crate) mod method;
pub(crate) mod removal;
