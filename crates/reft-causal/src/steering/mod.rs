//! How far steering moves a model, what hidden states show of a direction, and how well replies show a concept.

pub(crate) mod calibration;
pub(crate) mod page;
pub(crate) mod readings;
pub(crate) mod replies;
