use std::fmt::{Result, Write};

use reft_report::{Bar, Spread, escape, short_share};

use reft_train::Metric;

/// A table of a report: the same cells in Markdown and on its page.
pub(super) struct Table {
    pub(super) heads: Vec<String>,
    pub(super) rows: Vec<Row>,
}

/// A row of a table.
#[derive(Default)]
pub(super) struct Row {
    pub(super) cells: Vec<Cell>,
    /// The colour that its method has in plots.
    pub(super) colour: Option<usize>,
    /// Whether its second cell is the best of all rows.
    pub(super) is_best: bool,
}

/// A text, and the number that it is sorted by.
pub(super) type Cell = (String, Option<f64>);

/// An empty cell.
pub(super) fn nothing() -> Cell {
    ("–".to_owned(), None)
}

impl Table {
    pub(super) fn markdown(&self, out: &mut String) -> Result {
        writeln!(out, "| {} |\n{}|", self.heads.join(" | "), "|---".repeat(self.heads.len()))?;
        for row in &self.rows {
            let texts: Vec<&str> = row.cells.iter().map(|(text, _)| text.as_str()).collect();
            writeln!(out, "| {} |", texts.join(" | "))?;
        }
        Ok(())
    }

    /// The numbers of a column, from the rows that have a colour.
    pub(super) fn column(&self, head: &str) -> impl Iterator<Item = Bar> {
        let column = self.heads.iter().position(|own| own == head);
        self.rows.iter().filter_map(move |row| {
            let (text, value) = row.cells[column?].clone();
            Some(Bar { label: row.cells[0].0.clone(), colour: row.colour?, value: value?, text })
        })
    }

    pub(super) fn html(&self, out: &mut String) -> Result {
        writeln!(out, "<div class=\"scroll\"><table class=\"sortable\">\n<thead><tr>")?;
        for head in &self.heads {
            let head = escape(head);
            write!(out, "<th scope=\"col\"><button type=\"button\">{head}</button></th>")?;
        }
        writeln!(out, "</tr></thead>\n<tbody>")?;
        for row in &self.rows {
            row.html(out)?;
        }
        writeln!(out, "</tbody></table></div>\n<p class=\"soft\">Press a head to sort.</p>")
    }
}

impl Row {
    fn html(&self, out: &mut String) -> Result {
        let dot = self.colour.map_or("--soft".to_owned(), |colour| format!("--c{colour}"));
        let dot = format!("<span class=\"dot\" style=\"background:var({dot})\"></span>");
        write!(out, "<tr><td>{dot}{}</td>", escape(&self.cells[0].0))?;
        for (i, (text, value)) in self.cells.iter().enumerate().skip(1) {
            let class = if i == 1 && self.is_best { " class=\"best\"" } else { "" };
            let value = value.map_or(String::new(), |value| value.to_string());
            write!(out, "<td{class} data-value=\"{value}\">{}</td>", escape(text))?;
        }
        writeln!(out, "</tr>")
    }
}

/// A score: shares in percent, losses and correlations as they are.
pub(super) fn score(metric: Metric, value: f64) -> String {
    if metric.is_share() { format!("{:.1} %", 100.0 * value) } else { format!("{value:.4}") }
}

/// Mean ± standard deviation of scores.
pub(super) fn score_spread(metric: Metric, spread: &Spread) -> String {
    let Some(sd) = spread.sd else { return score(metric, spread.mean) };
    match metric.is_share() {
        true => format!("{:.1} ± {:.1} %", 100.0 * spread.mean, 100.0 * sd),
        false => format!("{:.4} ± {sd:.4}", spread.mean),
    }
}

/// A score in at most four characters; a share below 1 is never rounded up to 100.
pub(super) fn short_score(metric: Metric, value: f64) -> String {
    if metric.is_share() { short_share(value) } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_in_percent_and_losses_as_they_are() {
        let two = Spread::of([0.9, 0.92]).expect("values");
        assert_eq!(score_spread(Metric::Accuracy, &two), "91.0 ± 1.4 %");
        assert_eq!(short_score(Metric::Recall, 0.9999), "99.9");
        assert_eq!(short_score(Metric::Loss, 2.3456), "2.35");
    }
}
