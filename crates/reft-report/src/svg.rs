use std::fmt::{Arguments, Write};

use crate::escape;

/// A drawing that is being made: SVG that takes its colours from the page.
pub(crate) struct Svg(String);

impl Svg {
    /// An empty drawing; `attributes` of its element say how large it is.
    pub(crate) fn new(attributes: &str, title: &str) -> Self {
        let title = escape(title);
        Self(format!(
            "<svg {attributes} role=\"img\" aria-label=\"{title}\"><title>{title}</title>"
        ))
    }

    /// Adds elements as they are.
    pub(crate) fn add(&mut self, elements: Arguments) {
        self.0.write_fmt(elements).expect("invariant: writing to a string cannot fail");
    }

    /// Adds a text, which begins, has its middle or ends at a place.
    pub(crate) fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: &str, text: &str) {
        self.add(format_args!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
            escape(text)
        ));
    }

    /// Adds a straight line.
    pub(crate) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.add(format_args!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" x2=\"{x2:.1}\" y1=\"{y1:.1}\" y2=\"{y2:.1}\"/>"
        ));
    }

    /// The drawing.
    pub(crate) fn finish(self) -> String {
        self.0 + "</svg>"
    }
}
