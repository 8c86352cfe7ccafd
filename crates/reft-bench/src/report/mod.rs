//! Reports: what the cells of a comparison come to, as JSON, Markdown and one HTML page; training runs side by side.

pub(crate) mod peft;
pub(crate) mod results;
pub(crate) mod sweep;

pub(crate) mod table;
pub(crate) mod tables;

pub(crate) mod markdown;

pub(crate) mod html;

pub(crate) mod run;
