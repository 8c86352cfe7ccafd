//! The report of a comparison: what the cells come to, as JSON, Markdown and one HTML page.

pub(crate) mod results;
pub(crate) mod sweep;

pub(crate) mod table;
pub(crate) mod tables;

pub(crate) mod markdown;

pub(crate) mod html;
