//! Measures of steering: how far it moves a model, the part of hidden states along a direction, and how well replies show a concept.

pub(crate) mod calibration;
pub(crate) mod page;
pub(crate) mod readings;
pub(crate) mod replies;
