//! From the rows of a file to batches of tokens.

pub(crate) mod record;
pub(crate) mod template;

pub(crate) mod encoding;
pub(crate) mod example;

pub(crate) mod dataset;
pub(crate) mod needed;

pub(crate) mod batch;
pub(crate) mod text_template;
