//! Reports of comparisons as JSON, Markdown and one HTML page; a page that compares training runs.

pub(crate) mod peft;
pub(crate) mod results;
pub(crate) mod sweep;

pub(crate) mod table;
pub(crate) mod tables;

pub(crate) mod markdown;

pub(crate) mod html;

pub(crate) mod run;
