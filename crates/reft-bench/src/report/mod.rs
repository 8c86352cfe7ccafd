//! The report of a comparison: what the cells come to, as JSON, Markdown and one HTML page.

mod axis;
mod heat_map;
mod html;
mod markdown;
mod numbers;
mod page_script;
mod page_style;
mod plots;
mod results;
mod spread;
mod sweep;
mod sweep_markdown;
mod sweep_page;

pub(crate) use heat_map::{Heat, HeatMap, heat_map};
pub(crate) use html::{escape, figure, page};
pub use numbers::grouped;
pub use results::{BaseReport, MethodReport, RateReport, Report};
pub use spread::Spread;
pub use sweep::{PointReport, SweepReport};
pub(crate) use sweep_page::short_share;
