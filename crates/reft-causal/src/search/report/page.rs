use std::fmt::Write;

use reft_report::{Heat, HeatMap, escape, figure, heat_map, page, short_share, texts};

use crate::search::report::markdown::share;
use crate::{DasReport, DasRow, MeasuredShare};

/// The figure of a row that a map shows.
pub(crate) type Of = fn(&DasRow) -> Option<MeasuredShare>;

pub(crate) const MAPS: [(&str, &str, Of); 5] = [
    (
        "What is swapped",
        "Interchange intervention accuracy on held-out counterfactuals, in percent.",
        |row| Some(row.found),
    ),
    ("Before training", "The same swap in the subspace that training began at.", |row| row.start),
    (
        "Control: random subspace",
        "The same swap in a subspace that nothing was trained for.",
        |row| row.random_rotation,
    ),
    (
        "Control: neurons",
        "As many coordinates without a rotation: the ones whose mean follows the variable most.",
        |row| row.neurons,
    ),
    (
        "Control: untrained model",
        "The same search in a model of the same shape with random weights.",
        |row| row.untrained_model,
    ),
];

const LEGEND: &str = "IIA is the share of held-out counterfactuals that are answered as the causal model says after the swap. \
    It says what these swaps do on these inputs: not that the model has no other place for the variable, nor that a place with a low value holds nothing of it. \
    Colours begin at the share that is right without a swap: a place without colour does no more than no swap at all.";

impl DasReport {
    /// The report as one self-contained page: heat maps of layers and tokens, one set for each rank.
    pub fn html(&self) -> String {
        page(&self.name, self.facts(), LEGEND, |out| {
            slider(out, &self.options.ranks)?;
            for &rank in &self.options.ranks {
                writeln!(out, "<section data-slide=\"rank\" data-name=\"{rank}\">")?;
                best(out, self, rank)?;
                for component in &self.options.components {
                    maps(out, self, component, rank)?;
                }
                writeln!(out, "</section>")?;
            }
            for (heading, heads, rows) in self.details() {
                writeln!(out, "<h2>{}</h2>", escape(&heading))?;
                let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
                texts(out, &heads, &rows)?;
            }
            Ok(())
        })
    }

    /// The share of the palest colour: the share answered as expected without a swap; 0 if that is unknown or 1.
    pub(crate) fn palest(&self) -> f64 {
        self.no_intervention.map(|share| share.iia).filter(|iia| *iia < 1.0).unwrap_or(0.0)
    }

    /// A map of a component at a rank, with colours from `palest` to 1; `None` without values.
    pub(crate) fn map(
        &self,
        name: &str,
        (component, rank): (&str, i64),
        of: Of,
        palest: f64,
    ) -> Option<String> {
        let columns: Vec<String> = self.options.layers.iter().map(usize::to_string).collect();
        let rows = &self.options.positions;
        let cell = |position: &String, layer: &usize| {
            let row = self.at(component, *layer, position, rank)?;
            let value = of(row)?.iia;
            Some(Heat { value, text: short_share(value), title: title(row) })
        };
        let line = |position| self.options.layers.iter().map(|l| cell(position, l)).collect();
        let cells: Vec<Vec<Option<Heat>>> = rows.iter().map(line).collect();
        if cells.iter().flatten().all(Option::is_none) {
            return None;
        }
        let lowest = if palest > 0.0 {
            format!("{} %, no swap", short_share(palest))
        } else {
            "0 %".to_owned()
        };
        let map = HeatMap {
            x: ("layer", &columns),
            y: ("token", rows),
            cells,
            range: (palest, 1.0),
            ends: (lowest, "100 %".to_owned()),
            unit: "IIA",
        };
        Some(heat_map(name, &map))
    }
}

fn slider(out: &mut String, ranks: &[i64]) -> std::fmt::Result {
    let (first, last) = (ranks.first().copied().unwrap_or(1), ranks.len().saturating_sub(1));
    writeln!(
        out,
        "<p class=\"slider\" hidden><label>Rank of the subspace <input type=\"range\" min=\"0\" max=\"{last}\" step=\"1\" value=\"0\" data-slider=\"rank\"></label> <output>{first}</output></p>"
    )
}

fn best(out: &mut String, report: &DasReport, rank: i64) -> std::fmt::Result {
    let Some(row) = report.best(rank) else { return Ok(()) };
    writeln!(out, "<h2>Rank {rank}</h2>\n<p>Best: {}.</p>", escape(&title(row)))
}

fn maps(out: &mut String, report: &DasReport, component: &str, rank: i64) -> std::fmt::Result {
    for (name, note, of) in MAPS {
        let name = format!("{name}, {component}, rank {rank}");
        if let Some(map) = report.map(&name, (component, rank), of, report.palest()) {
            figure(out, &name, note, &map, &[])?;
        }
    }
    Ok(())
}

/// A row in words, for the pointer on its cell.
fn title(row: &DasRow) -> String {
    let DasRow { site, position, rank, dimensions, .. } = row;
    let mut text = format!("{site} at {position}, rank {rank}");
    if rank != dimensions {
        let _ = write!(text, ", {dimensions} dimensions swapped");
    }
    let _ = write!(text, ": IIA {}", share(&row.found));
    for (name, control) in [
        ("before training", &row.start),
        ("random subspace", &row.random_rotation),
        ("neurons", &row.neurons),
        ("untrained model", &row.untrained_model),
    ] {
        if let Some(control) = control {
            let _ = write!(text, "; {name} {:.1} %", 100.0 * control.iia);
        }
    }
    text
}
