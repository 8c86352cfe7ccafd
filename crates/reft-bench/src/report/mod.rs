//! The report of a comparison: what the cells come to, as JSON, Markdown and one HTML page.

mod results;
mod sweep;

mod scores;
mod table;
mod tables;

mod markdown;
mod sweep_markdown;

mod html;
mod sweep_page;

pub use results::{BaseReport, MethodReport, RateReport, Report};
pub use sweep::{PointReport, SweepReport};
