//! A heat map: a value at every point of a grid, as SVG that takes its colours from the page.

use crate::escape;
use crate::svg::Svg;

const WIDTH: f64 = 460.0;
const TOP: f64 = 24.0;
const RIGHT: f64 = 12.0;
/// The least room that a value needs.
const NARROWEST: f64 = 38.0;
const ROW: f64 = 36.0;
/// Room below the grid: column names, their name, and the scale with a line above and below it.
const BELOW: f64 = 102.0;
/// A map of few columns does not grow past this, however wide the page is.
const LARGEST_SCALE: f64 = 1.5;
const STEPS: usize = 20;

/// Values over two axes.
pub struct HeatMap<'a> {
    /// Name of the columns, and of each.
    pub x: (&'a str, &'a [String]),
    /// Name of the rows, and of each.
    pub y: (&'a str, &'a [String]),
    /// Row by row; values that are not known yet are `None`.
    pub cells: Vec<Vec<Option<Heat>>>,
    /// The values whose colours are the palest and the strongest.
    pub range: (f64, f64),
    /// Names of the range's ends.
    pub ends: (String, String),
    /// The name of the values.
    pub unit: &'a str,
}

/// A value of a heat map.
pub struct Heat {
    /// The value, which its colour shows.
    pub value: f64,
    /// The value in few characters.
    pub text: String,
    /// The text that a pointer on it shows.
    pub title: String,
}

/// The map, with its values written into it and its scale below.
pub fn heat_map(title: &str, map: &HeatMap) -> String {
    let ((x_name, x_names), (y_name, y_names)) = (map.x, map.y);
    let longest = y_names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let left = (8.0 * longest.max(y_name.chars().count()) as f64 + 14.0).min(150.0);
    let columns = x_names.len().max(1) as f64;
    let column = ((WIDTH - left - RIGHT) / columns).max(NARROWEST);
    let right = left + column * columns;
    let (width, bottom) = (right + RIGHT, TOP + ROW * y_names.len() as f64);
    let (height, narrowest) = (bottom + BELOW, (0.62 * width).max(width - 150.0));
    let widest = LARGEST_SCALE * width;
    let size = format!(
        "viewBox=\"0 0 {width:.0} {height:.0}\" style=\"min-width:{narrowest:.0}px;max-width:{widest:.0}px\""
    );
    let mut svg = Svg::new(&format!("class=\"map\" {size}"), title);
    svg.text("tick", (left - 8.0, TOP - 9.0), "end", y_name);
    for (i, name) in y_names.iter().enumerate() {
        svg.text("name", (left - 8.0, TOP + ROW * (i as f64 + 0.5) + 4.0), "end", name);
    }
    for (i, name) in x_names.iter().enumerate() {
        svg.text("name", (left + column * (i as f64 + 0.5), bottom + 17.0), "middle", name);
    }
    svg.text("tick", ((left + right) / 2.0, bottom + 36.0), "middle", x_name);
    for (row, cells) in map.cells.iter().enumerate() {
        for (i, cell) in cells.iter().enumerate() {
            let (x, y) = (left + column * i as f64 + 1.0, TOP + ROW * row as f64 + 1.0);
            add_cell(&mut svg, cell.as_ref(), map.range, (x, y, column - 2.0, ROW - 2.0));
        }
    }
    add_scale(&mut svg, map, (left, right, bottom + 54.0));
    format!("<div class=\"wide\">{}</div>", svg.finish())
}

fn add_cell(
    svg: &mut Svg,
    cell: Option<&Heat>,
    range: (f64, f64),
    (x, y, width, height): (f64, f64, f64, f64),
) {
    let place =
        format!("x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"3\"");
    let Some(cell) = cell else { return svg.add(format_args!("<rect class=\"empty\" {place}/>")) };
    let shade = shade(cell.value, range);
    let class = match shade {
        shade if shade < 0.6 => "value on-low",
        shade if shade < 0.8 => "value on-mid", // dark letters in both colour schemes
        _ => "value on-high",
    };
    svg.add(format_args!(
        "<g><title>{}</title><rect class=\"empty\" {place}/><rect class=\"heat\" fill-opacity=\"{shade:.3}\" {place}/>",
        escape(&cell.title)
    ));
    svg.text(class, (x + width / 2.0, y + height / 2.0 + 4.0), "middle", &cell.text);
    svg.add(format_args!("</g>"));
}

/// Colours from the palest to the strongest, between the two values that they stand for.
fn add_scale(svg: &mut Svg, map: &HeatMap, (left, right, top): (f64, f64, f64)) {
    // on a line of its own: beside the names of the ends there is no room on a narrow page
    svg.text("tick", ((left + right) / 2.0, top + 4.0), "middle", map.unit);
    let (top, width) = (top + 13.0, (right - left) / STEPS as f64);
    for i in 0..STEPS {
        let (x, shade) = (left + width * i as f64, (i as f64 + 0.5) / STEPS as f64);
        svg.add(format_args!(
            "<rect class=\"heat\" fill-opacity=\"{shade:.3}\" x=\"{x:.2}\" y=\"{top:.1}\" width=\"{width:.2}\" height=\"8\" shape-rendering=\"crispEdges\"/>"
        ));
    }
    let text = top + 23.0;
    svg.text("tick", (left, text), "start", &map.ends.0);
    svg.text("tick", (right, text), "end", &map.ends.1);
}

/// Where a value lies in a range, from 0 to 1.
fn shade(value: f64, (low, high): (f64, f64)) -> f64 {
    if high > low { ((value - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn attributes(svg: &str, name: &str) -> Vec<f64> {
        let start = format!(" {name}=\"");
        let pieces = svg.split(&start).skip(1);
        pieces.filter_map(|piece| piece.split('"').next()?.parse().ok()).collect()
    }

    #[test]
    fn every_value_is_written_on_a_colour_of_its_strength() {
        let (x, y) = (names(&["8", "<16>"]), names(&["5", "15", "25"]));
        let heat = |value: f64| {
            Some(Heat { value, text: format!("{value}"), title: format!("<{value}>") })
        };
        let cells =
            vec![vec![heat(0.0), heat(0.25)], vec![heat(0.7), None], vec![heat(1.0), heat(0.5)]];
        let map = HeatMap {
            x: ("tokens", &x),
            y: ("layer", &y),
            cells,
            range: (0.0, 1.0),
            ends: ("0 %".to_owned(), "100 %".to_owned()),
            unit: "recall",
        };
        let svg = heat_map("recall", &map);
        let shades = attributes(&svg, "fill-opacity");
        assert_eq!(&shades[..5], [0.0, 0.25, 0.7, 1.0, 0.5]);
        assert_eq!(shades.len(), 5 + STEPS);
        for (text, class) in [("0.25", "on-low"), ("0.7", "on-mid"), ("1", "on-high")] {
            let end = format!(">{text}</text>");
            let start = svg.split(&end).next().and_then(|rest| rest.rsplit("<text").next());
            assert!(start.is_some_and(|start| start.contains(class)), "{text}: {start:?}");
        }
        assert!(svg.contains("&lt;16&gt;") && !svg.contains("<16>") && !svg.contains("<0.25>"));
        let line_of = |text: &str| {
            let start = svg.split(&format!(">{text}</text>")).next()?.rsplit(" y=\"").next()?;
            start.split('"').next()?.parse::<f64>().ok()
        };
        assert_eq!(line_of("0 %"), line_of("100 %"));
        assert!(line_of("tokens") < line_of("recall") && line_of("recall") < line_of("0 %"));
        // six frames, one of them alone, and none leaves the picture
        assert_eq!(svg.matches("class=\"empty\"").count(), 6);
        assert!(attributes(&svg, "x").iter().all(|x| (0.0..=WIDTH).contains(x)), "{svg}");
    }

    #[test]
    fn many_columns_make_the_map_wider_and_not_the_values_smaller() {
        let (x, y) = (names(&["128"; 20]), names(&["5"]));
        let cells = vec![(0..20).map(|_| None).collect()];
        let ends = (String::new(), String::new());
        let map = HeatMap { x: ("x", &x), y: ("y", &y), cells, range: (0.0, 1.0), ends, unit: "" };
        let svg = heat_map("wide", &map);
        let width = svg.split("viewBox=\"0 0 ").nth(1).and_then(|rest| rest.split(' ').next());
        assert!(
            width.is_some_and(|width| width.parse::<f64>().is_ok_and(|w| w > 20.0 * NARROWEST))
        );
    }

    #[test]
    fn equal_values_have_a_colour_too() {
        assert_eq!(shade(3.0, (3.0, 3.0)), 0.5);
        assert_eq!(shade(9.0, (0.0, 3.0)), 1.0);
    }
}
