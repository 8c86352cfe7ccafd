use std::fmt::Write;

use reft_report::{escape, figure, page};

use crate::DasReport;
use crate::search::report::markdown::share;
use crate::search::report::page::MAPS;

const LEGEND: &str = "All maps have one scale of colours. It begins at the lowest share of a search without a swap. Where searches differ in that share, compare each map with its own, which stands above it.";

/// Searches on one page, their maps next to each other on one scale: one for each search, component and rank. Each has a name.
pub fn searches_page(searches: &[(String, DasReport)], command: &str) -> String {
    let palest = searches.iter().map(|(_, report)| report.palest()).reduce(f64::min).unwrap_or(0.0);
    let mut facts = vec![
        match searches.len() {
            1 => format!("A search of {}", models(searches)),
            n => format!("{n} searches of {}", models(searches)),
        },
        format!("Command: `{command}`"),
    ];
    for (name, report) in searches {
        let without = report.no_intervention.map_or("–".to_owned(), |own| share(&own));
        facts.push(format!(
            "`{name}`: {}, variable `{}`, in `{}`; without any swap {without}; its command `{}`",
            report.name, report.variable, report.model, report.command
        ));
    }
    page("Several searches", facts, LEGEND, |out| {
        for (i, (what, note, of)) in MAPS.into_iter().enumerate() {
            let mut maps = Vec::new();
            for (name, report) in searches {
                for component in &report.options.components {
                    for &rank in &report.options.ranks {
                        let title =
                            format!("{name}: {}, {component}, rank {rank}", report.variable);
                        let map = report.map(&title, (component, rank), of, palest);
                        maps.extend(map.map(|map| (title, map, report)));
                    }
                }
            }
            if maps.is_empty() {
                continue;
            }
            writeln!(out, "<h2>{}</h2>\n<p class=\"soft\">{}</p>", escape(what), escape(note))?;
            writeln!(out, "<div class=\"plots\">")?;
            for (title, map, report) in maps {
                let without = report.no_intervention.filter(|_| i == 0);
                let note = without
                    .map_or(String::new(), |own| format!("Without any swap: {}.", share(&own)));
                figure(out, &title, &note, &map, &[])?;
            }
            writeln!(out, "</div>")?;
        }
        Ok(())
    })
}

/// The models, each once.
fn models(searches: &[(String, DasReport)]) -> String {
    let mut models: Vec<String> = Vec::new();
    for (_, report) in searches {
        let model = format!("`{}`", report.model);
        if !models.contains(&model) {
            models.push(model);
        }
    }
    models.join(", ")
}
