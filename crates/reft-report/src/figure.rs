use std::fmt::Write;

use crate::page::STYLE;
use crate::{Curve, escape};

/// Writes a plot with its title, a note, and a legend of curves, which may be empty.
///
/// # Errors
/// If `out` cannot be written to; a string always can.
pub fn figure(
    out: &mut String,
    title: &str,
    note: &str,
    plot: &str,
    legend: &[Curve],
) -> std::fmt::Result {
    write!(
        out,
        "<figure><figcaption><b>{}</b><span class=\"soft\">{}</span></figcaption>{plot}",
        escape(title),
        escape(note)
    )?;
    let name = |Curve { label, colour, .. }: &Curve| {
        let dot = format!("<span class=\"dot\" style=\"background:var(--c{colour})\"></span>");
        format!("<span>{dot}{}</span>", escape(label))
    };
    if !legend.is_empty() {
        let names: String = legend.iter().map(name).collect();
        write!(out, "<div class=\"legend\">{names}</div>")?;
    }
    writeln!(out, "</figure>")
}

/// A plot as a separate file, with the page's style in it.
///
/// # Panics
/// If `plot` is no element.
pub fn svg_file(plot: &str) -> String {
    let (start, rest) = plot.split_once('>').expect("invariant: a plot begins with its tag");
    format!(
        "{start} xmlns=\"http://www.w3.org/2000/svg\"><style>{STYLE}svg{{background:var(--bg)}}</style>{rest}\n"
    )
}
