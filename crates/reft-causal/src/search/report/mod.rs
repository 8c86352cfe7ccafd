//! The results of a search: as JSON, as Markdown, and as a page of heat maps.

pub(crate) mod das_report;
pub(crate) mod markdown;
pub(crate) mod page;
pub(crate) mod searches;
