//! The plots, as SVG that takes its colours from the page.

use crate::axis::Axis;
use crate::escape;
use crate::svg::Svg;

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
    /// Its points from left to right: a step, and the value there.
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// A curve of a value for each step, from the first on.
    pub fn of_steps(label: String, colour: usize, values: Vec<f64>) -> Self {
        let points = (1..).map(f64::from).zip(values).collect();
        Self { label, colour, points }
    }
}

/// How values are spread along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// By their logarithm; all of them are above 0.
    Log,
}

/// A bar.
pub struct Bar {
    /// Its name.
    pub label: String,
    /// Which of the page's [`COLOURS`](crate::COLOURS).
    pub colour: usize,
    /// Its length; the longest bar fills the plot.
    pub value: f64,
    /// The value in words.
    pub text: String,
}

/// The meaning of the two axes of a plot.
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
    let x = Axis::log(points.iter().map(|point| point.x), 0.35, (LEFT, RIGHT));
    let y = Axis::linear(
        points.iter().flat_map(reach).chain(line.map(|(_, value)| value)),
        (BOTTOM, TOP),
    );
    let mut svg = drawing(&format!("{} against {}", names.y, names.x), HEIGHT);
    frame(&mut svg, (&x, &y), names, percent, x_tick);
    let mut taken: Vec<Area> = Vec::new();
    if let Some((_, value)) = line {
        svg.line("base", (LEFT, y.place(value)), (RIGHT, y.place(value)));
    }
    for point in points {
        let (px, py, colour) = (x.place(point.x), y.place(point.y), point.colour);
        let [bottom, top] = reach(point).map(|end| y.place(end));
        let (left, right) = (px - 4.0, px + 4.0);
        taken.push(Area { left: px - 7.0, right: px + 7.0, top: py - 7.0, bottom: py + 7.0 });
        taken.push(Area { left, right, top, bottom });
        if point.sd.is_some_and(|sd| sd > 0.0) {
            svg.add(format_args!(
                "<path class=\"c{colour} sd\" d=\"M{px:.1} {top:.1}V{bottom:.1}M{left:.1} {top:.1}h8M{left:.1} {bottom:.1}h8\"/>"
            ));
        }
        svg.add(format_args!(
            "<circle class=\"c{colour}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"5.5\"><title>{}</title></circle>",
            escape(&point.title)
        ));
    }
    if let Some((label, value)) = line {
        let below = y.place(value) + 14.0;
        let ends = [(RIGHT - 4.0, below, "end"), (LEFT + 4.0, below, "start")];
        let (x, y, anchor) = free_place(&ends, label, &mut taken);
        svg.text("note", (x, y), anchor, label);
    }
    for point in points {
        let places = places_beside(x.place(point.x), y.place(point.y));
        let (tx, ty, anchor) = free_place(&places, &point.label, &mut taken);
        svg.text("name", (tx, ty), anchor, &point.label);
    }
    svg.finish()
}

/// Curves over the steps of a run. If a value is not above 0, the left axis is linear for every `scale`.
pub fn curves(curves: &[Curve], names: &Names, scale: Scale) -> String {
    let points = || curves.iter().flat_map(|curve| curve.points.iter().copied());
    let (first, last) = points()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (x, _)| (low.min(x), high.max(x)));
    let x = match first < last {
        true => Axis::between(first, last, (LEFT, RIGHT)),
        false => Axis::between(0.0, 1.0, (LEFT, RIGHT)),
    };
    let values = || points().map(|(_, y)| y).filter(|y| y.is_finite());
    let y = match scale {
        Scale::Log if values().all(|y| y > 0.0) => Axis::log(values(), 0.02, (BOTTOM, TOP)),
        _ => Axis::linear(values(), (BOTTOM, TOP)),
    };
    let mut svg = drawing(&format!("{} over {}", names.y, names.x), HEIGHT);
    frame(&mut svg, (&x, &y), names, false, |tick| format!("{tick:.0}"));
    for curve in curves {
        let finite = curve.points.iter().filter(|(_, value)| value.is_finite());
        let place =
            |(step, value): &(f64, f64)| format!("{:.1} {:.1}", x.place(*step), y.place(*value));
        let path = finite.map(place).collect::<Vec<_>>().join("L");
        let start = if path.is_empty() { "" } else { "M" };
        svg.add(format_args!(
            "<path class=\"c{} curve\" d=\"{start}{path}\"><title>{}</title></path>",
            curve.colour,
            escape(&curve.label)
        ));
    }
    svg.finish()
}

/// Bars under each other, the value behind each.
pub fn bars(title: &str, bars: &[Bar]) -> String {
    const ROW: f64 = 27.0;
    let height = 10.0 + ROW * bars.len() as f64;
    let widest = bars.iter().map(|bar| bar.value).fold(0.0, f64::max).max(1e-12);
    let longest = bars.iter().map(|bar| bar.label.chars().count()).max().unwrap_or(0);
    let left = (longest as f64 * 7.0 + 14.0).min(180.0);
    let room = WIDTH - left - 92.0; // the value's text
    let mut svg = drawing(title, height);
    for (i, bar) in bars.iter().enumerate() {
        let top = 5.0 + ROW * i as f64;
        let width = (bar.value / widest * room).max(1.0);
        let middle = top + 14.0;
        svg.text("name", (left - 8.0, middle), "end", &bar.label);
        svg.add(format_args!(
            "<rect class=\"c{}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"19\" rx=\"3\"/>",
            bar.colour
        ));
        svg.text("note", (left + width + 6.0, middle), "start", &bar.text);
    }
    svg.finish()
}

fn drawing(title: &str, height: f64) -> Svg {
    Svg::new(&format!("viewBox=\"0 0 {WIDTH} {height}\""), title)
}

/// Grid, ticks and names of the axes.
fn frame(
    svg: &mut Svg,
    (x, y): (&Axis, &Axis),
    names: &Names,
    percent: bool,
    x_tick: impl Fn(f64) -> String,
) {
    let (factor, unit) = if percent { (100.0, " %") } else { (1.0, "") };
    for tick in y.ticks() {
        let at = y.place(tick);
        svg.line("grid", (LEFT, at), (RIGHT, at));
        let decimals = y.decimals(tick, factor);
        let text = format!("{:.decimals$}{unit}", tick * factor);
        svg.text("tick", (LEFT - 6.0, at + 4.0), "end", &text);
    }
    for tick in x.ticks() {
        let at = x.place(tick);
        svg.line("grid", (at, TOP), (at, BOTTOM));
        svg.text("tick", (at, BOTTOM + 17.0), "middle", &x_tick(tick));
    }
    svg.text("tick", ((LEFT + RIGHT) / 2.0, HEIGHT - 8.0), "middle", names.x);
}

/// An area that is already drawn on.
struct Area {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Area {
    /// The box of a text that begins, has its middle or ends at `x`.
    fn text((x, y, anchor): Place, text: &str) -> Self {
        let width = 7.6 * text.chars().count() as f64;
        let left = match anchor {
            "start" => x,
            "middle" => x - 0.5 * width,
            _ => x - width,
        };
        Self { left, right: left + width, top: y - 11.0, bottom: y + 3.0 }
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

/// The position of a text, and its anchor: start, middle or end.
type Place = (f64, f64, &'static str);

/// Where a point's name may stand, the best places first.
fn places_beside(px: f64, py: f64) -> Vec<Place> {
    let mut places = vec![(px + 10.0, py + 4.0, "start"), (px - 10.0, py + 4.0, "end")];
    for distance in [14.0, 26.0, 38.0] {
        for y in [py - distance + 2.0, py + distance + 6.0] {
            places.extend([(px, y, "middle"), (px + 8.0, y, "start"), (px - 8.0, y, "end")]);
        }
    }
    places
}

/// The place where a text covers the least of the drawing; the first of equal places.
fn free_place(places: &[Place], text: &str, taken: &mut Vec<Area>) -> Place {
    let cost = |place: Place| {
        let own = Area::text(place, text);
        own.outside() * 100.0 + taken.iter().map(|other| own.overlap(other)).sum::<f64>()
    };
    let costs = places.iter().map(|&place| (cost(place), place));
    let best = costs.min_by(|(a, _), (b, _)| a.total_cmp(b));
    let (_, place) = best.expect("invariant: there are places to choose from");
    taken.push(Area::text(place, text));
    place
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
        let first = free_place(&places_beside(200.0, 100.0), "LoReFT", &mut taken);
        let second = free_place(&places_beside(202.0, 101.0), "DiReFT", &mut taken);
        assert_ne!(first, second);
        assert_eq!(taken[0].overlap(&taken[1]), 0.0);
    }
}
