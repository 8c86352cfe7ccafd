//! Reads data files, makes examples of their rows, and makes batches of tokens of the examples.

pub(crate) mod files;

pub(crate) mod rows;

pub(crate) mod template;
pub(crate) mod text_template;

pub(crate) mod encoding;
pub(crate) mod example;
pub(crate) mod labels;

pub(crate) mod dataset;
pub(crate) mod needed;

pub(crate) mod batch;
