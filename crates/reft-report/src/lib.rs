//! Self-contained pages: plots, heat maps and tables as HTML and SVG in one file, in light and dark, on narrow screens and on paper.
//!
//! It draws numbers and names, and knows neither models nor tensors.
//!
//! ```
//! use reft_report::{Curve, Names, Scale, curves, figure, page};
//!
//! let facts = ["Model tiny", "Task sums", "Command: `reft train`"].map(str::to_owned);
//! let html = page("Two methods", facts.into(), "The loss is the one before each step.", |out| {
//!     let loreft = Curve::of_steps("LoReFT".to_owned(), 0, vec![2.3, 1.2, 0.9]);
//!     let lora = Curve::of_steps("LoRA".to_owned(), 1, vec![2.3, 1.4, 1.0]);
//!     let drawn = [loreft, lora];
//!     let plot = curves(&drawn, &Names { x: "step", y: "training loss" }, Scale::Log);
//!     figure(out, "Training loss", "In nats.", &plot, &drawn)
//! });
//! assert!(html.starts_with("<!doctype html>"));
//! assert!(html.contains("<h1>Two methods</h1>") && html.contains("<svg"));
//! ```

mod escape;
mod page;

mod figure;

mod attention_maps;
mod axis;
mod heat_map;
mod plots;
mod svg;
mod texts;

mod numbers;

pub use attention_maps::{AttentionMaps, attention_maps};
pub use escape::escape;
pub use figure::{figure, svg_file};
pub use heat_map::{Heat, HeatMap, heat_map};
pub use numbers::{
    Spread, bytes, counted, grouped, percent, running_mean, running_mean_steps, seconds, short,
    short_share, spread,
};
pub use page::{COLOURS, page};
pub use plots::{Bar, Curve, Names, Point, Scale, bars, curves, scatter};
pub use texts::texts;
