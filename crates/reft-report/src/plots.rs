//! The plots, as SVG that takes its colours from the page.

use std::fmt::Write;

use crate::axis::Axis;
use crate::escape::escape;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 448.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 276.0;

/// A point of a plot of one number against another.
pub struct Point {
    /// The name that is written beside it.
    pub label: String,
    /// Which of the page's [`COLOURS`](crate::COLOURS).
    pub colour: usize,
    /// The number of the lower axis.
    pub x: f64,
    /// The number of the left axis.
    pub y: f64,
    /// The standard deviation of `y`.
    pub sd: Option<f64>,
    /// The text that a pointer on it shows.
    pub title: String,
}

/// A curve.
pub struct Curve {
    /// Its name in the legend.
    pub label: String,
    /// Which of the page's [`COLOURS`](crate::COLOURS).
    pub colour: usize,
    /// A value for each step, from the first on.
    pub values: Vec<f64>,
}

/// A bar.
pub struct Bar {
    /// Its name.
    pub label: String,
    /// Which of the page's [`COLOURS`](crate::COLOURS).
    pub colour: usize,
    /// Its length, of which the longest fills the plot.
    pub value: f64,
    /// The value in words.
    pub text: String,
}

/// What the two axes of a plot mean.
pub struct Names<'a> {
    /// The lower axis.
    pub x: &'a str,
    /// The left axis.
    pub y: &'a str,
}

/// Points over a logarithmic axis, with a dashed line at a value that has a name. With `percent` the left axis counts in percent.
pub fn scatter(
    points: &[Point],
    line: Option<(&str, f64)>,
    names: &Names,
    percent: bool,
    x_tick: impl Fn(f64) -> String,
) -> String {
    let reach = |point: &Point| {
        let sd = point.sd.unwrap_or(0.0);
        [point.y - sd, point.y + sd]
    };
    let x = Axis::log(points.iter().map(|point| point.x), (LEFT, RIGHT));
    let y = Axis::linear(
        points.iter().flat_map(reach).chain(line.map(|(_, value)| value)),
        (BOTTOM, TOP),
    );
    let mut svg = open(&format!("{} against {}", names.y, names.x), HEIGHT);
    frame(&mut svg, (&x, &y), names, percent, x_tick);
    let mut taken: Vec<Area> = Vec::new();
    if let Some((_, value)) = line {
        let at = y.place(value);
        add(
            &mut svg,
            format!(
                "<line class=\"base\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>"
            ),
        );
    }
    for point in points {
        let (px, py) = (x.place(point.x), y.place(point.y));
        taken.push(Area { left: px - 7.0, right: px + 7.0, top: py - 7.0, bottom: py + 7.0 });
        let sd = point.sd.unwrap_or(0.0);
        let (top, bottom) = (y.place(point.y + sd), y.place(point.y - sd));
        taken.push(Area { left: px - 4.0, right: px + 4.0, top, bottom });
    }
    for point in points {
        let (px, py, colour) = (x.place(point.x), y.place(point.y), point.colour);
        if let Some(sd) = point.sd.filter(|sd| *sd > 0.0) {
            let (top, bottom) = (y.place(point.y + sd), y.place(point.y - sd));
            add(
                &mut svg,
                format!(
                    "<path class=\"c{colour} sd\" d=\"M{px:.1} {top:.1}V{bottom:.1}M{:.1} {top:.1}h8M{:.1} {bottom:.1}h8\"/>",
                    px - 4.0,
                    px - 4.0
                ),
            );
        }
        add(
            &mut svg,
            format!(
                "<circle class=\"c{colour}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"5.5\"><title>{}</title></circle>",
                escape(&point.title)
            ),
        );
    }
    if let Some((label, value)) = line {
        let below = y.place(value) + 14.0;
        let ends = [(RIGHT - 4.0, "end", 1.0), (LEFT + 4.0, "start", 0.0)];
        let covered = |&(x, _, anchor): &(f64, &str, f64)| {
            let own = Area::text(x, below, label, anchor);
            taken.iter().map(|other| own.overlap(other)).sum::<f64>()
        };
        let free = ends.iter().position(|end| covered(end) == 0.0).unwrap_or(0);
        let (x, name, anchor) = ends[free];
        add(
            &mut svg,
            format!(
                "<text class=\"note\" x=\"{x:.1}\" y=\"{below:.1}\" text-anchor=\"{name}\">{}</text>",
                escape(label)
            ),
        );
        taken.push(Area::text(x, below, label, anchor));
    }
    for point in points {
        let (px, py) = (x.place(point.x), y.place(point.y));
        let (tx, ty, anchor) = free_place(px, py, &point.label, &mut taken);
        add(
            &mut svg,
            format!(
                "<text class=\"name\" x=\"{tx:.1}\" y=\"{ty:.1}\" text-anchor=\"{anchor}\">{}</text>",
                escape(&point.label)
            ),
        );
    }
    close(svg)
}

/// Curves over the steps of a run.
pub fn curves(curves: &[Curve], names: &Names) -> String {
    let steps = curves.iter().map(|curve| curve.values.len()).max().unwrap_or(1).max(2);
    let x = Axis::between(1.0, steps as f64, (LEFT, RIGHT));
    let y =
        Axis::linear(curves.iter().flat_map(|curve| curve.values.iter().copied()), (BOTTOM, TOP));
    let mut svg = open(&format!("{} over {}", names.y, names.x), HEIGHT);
    frame(&mut svg, (&x, &y), names, false, |tick| format!("{tick:.0}"));
    for curve in curves {
        let mut path = String::new();
        for (i, value) in curve.values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
            let command = if path.is_empty() { 'M' } else { 'L' };
            let (px, py) = (x.place(i as f64 + 1.0), y.place(*value));
            add(&mut path, format!("{command}{px:.1} {py:.1}"));
        }
        add(
            &mut svg,
            format!(
                "<path class=\"c{} curve\" d=\"{path}\"><title>{}</title></path>",
                curve.colour,
                escape(&curve.label)
            ),
        );
    }
    close(svg)
}

/// Bars under each other, the value behind each.
pub fn bars(title: &str, bars: &[Bar]) -> String {
    const ROW: f64 = 27.0;
    let height = 10.0 + ROW * bars.len() as f64;
    let widest = bars.iter().map(|bar| bar.value).fold(0.0, f64::max).max(1e-12);
    let longest = bars.iter().map(|bar| bar.label.chars().count()).max().unwrap_or(0);
    let left = (longest as f64 * 7.0 + 14.0).min(180.0);
    let room = WIDTH - left - 92.0; // the value's text
    let mut svg = open(title, height);
    for (i, bar) in bars.iter().enumerate() {
        let top = 5.0 + ROW * i as f64;
        let width = (bar.value / widest * room).max(1.0);
        let middle = top + 14.0;
        add(
            &mut svg,
            format!(
                "<text class=\"name\" x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"c{}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"19\" rx=\"3\"/>\
             <text class=\"note\" x=\"{:.1}\" y=\"{middle:.1}\">{}</text>",
                left - 8.0,
                escape(&bar.label),
                bar.colour,
                left + width + 6.0,
                escape(&bar.text)
            ),
        );
    }
    close(svg)
}

fn open(title: &str, height: f64) -> String {
    let title = escape(title);
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>"
    )
}

fn close(mut svg: String) -> String {
    svg.push_str("</svg>");
    svg
}

fn add(svg: &mut String, piece: String) {
    svg.push_str(&piece);
}

/// Grid, ticks and names of the axes.
fn frame(
    svg: &mut String,
    (x, y): (&Axis, &Axis),
    names: &Names,
    percent: bool,
    x_tick: impl Fn(f64) -> String,
) {
    let (factor, unit) = if percent { (100.0, " %") } else { (1.0, "") };
    let decimals = y.decimals(factor);
    let mut piece = String::new();
    for tick in y.ticks() {
        let at = y.place(tick);
        let _infallible = write!(
            piece,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.decimals$}{unit}</text>",
            LEFT - 6.0,
            at + 4.0,
            tick * factor
        );
    }
    for tick in x.ticks() {
        let at = x.place(tick);
        let _infallible = write!(
            piece,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{BOTTOM}\"/>\
             <text class=\"tick\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            BOTTOM + 17.0,
            escape(&x_tick(tick))
        );
    }
    let _infallible = write!(
        piece,
        "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        (LEFT + RIGHT) / 2.0,
        HEIGHT - 8.0,
        escape(names.x)
    );
    svg.push_str(&piece);
}

/// A place that is taken.
struct Area {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Area {
    /// A text's box; `anchor` is the share of its width that lies before `x`.
    fn text(x: f64, y: f64, text: &str, anchor: f64) -> Self {
        let width = 7.6 * text.chars().count() as f64;
        Self {
            left: x - anchor * width,
            right: x + (1.0 - anchor) * width,
            top: y - 11.0,
            bottom: y + 3.0,
        }
    }

    fn overlap(&self, other: &Self) -> f64 {
        let width = self.right.min(other.right) - self.left.max(other.left);
        let height = self.bottom.min(other.bottom) - self.top.max(other.top);
        width.max(0.0) * height.max(0.0)
    }

    fn outside(&self) -> f64 {
        (LEFT - self.left).max(0.0)
            + (self.right - WIDTH).max(0.0)
            + (self.bottom - BOTTOM).max(0.0)
            + (1.0 - self.top).max(0.0)
    }
}

/// Where a point's name covers least of what is there already.
fn free_place(px: f64, py: f64, text: &str, taken: &mut Vec<Area>) -> (f64, f64, &'static str) {
    let mut places = vec![(px + 10.0, py + 4.0, "start", 0.0), (px - 10.0, py + 4.0, "end", 1.0)];
    for distance in [14.0, 26.0, 38.0] {
        for dy in [-distance + 2.0, distance + 6.0] {
            places.push((px, py + dy, "middle", 0.5));
            places.push((px + 8.0, py + dy, "start", 0.0));
            places.push((px - 8.0, py + dy, "end", 1.0));
        }
    }
    let cost = |&(x, y, _, anchor): &(f64, f64, &str, f64)| {
        let own = Area::text(x, y, text, anchor);
        own.outside() * 100.0 + taken.iter().map(|other| own.overlap(other)).sum::<f64>()
    };
    let costs: Vec<f64> = places.iter().map(cost).collect();
    let best = (0..places.len()).min_by(|&a, &b| costs[a].total_cmp(&costs[b])).unwrap_or(0);
    let (x, y, name, anchor) = places[best];
    taken.push(Area::text(x, y, text, anchor));
    (x, y, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(label: &str, x: f64, y: f64) -> Point {
        let label = label.to_owned();
        Point { title: label.clone(), label, colour: 0, x, y, sd: Some(0.01) }
    }

    #[test]
    fn every_point_is_drawn_inside_the_frame() {
        let points = [point("a<b", 1e3, 0.5), point("b", 1e6, 0.9), point("c", 1.1e6, 0.9)];
        let names = Names { x: "parameters", y: "accuracy" };
        let svg = scatter(&points, Some(("level", 0.4)), &names, true, |tick| format!("{tick}"));
        let places = svg.split("cx=\"").skip(1).map(|rest| rest.split('"').next().unwrap_or(""));
        let places: Vec<f64> = places.filter_map(|x| x.parse().ok()).collect();
        assert_eq!(places.len(), 3);
        assert!(places.iter().all(|x| (LEFT..=RIGHT).contains(x)), "{places:?}");
        assert!(svg.contains("a&lt;b") && !svg.contains("a<b"));
        assert_eq!(svg.matches("level").count(), 1);
    }

    #[test]
    fn names_of_near_points_do_not_cover_each_other() {
        let mut taken = Vec::new();
        let first = free_place(200.0, 100.0, "LoReFT", &mut taken);
        let second = free_place(202.0, 101.0, "DiReFT", &mut taken);
        assert_ne!(first, second);
        assert_eq!(taken[0].overlap(&taken[1]), 0.0);
    }
}
