use std::fmt::Write;

use reft_report::counted;

use crate::{
    DasAlignment, DasOptions, DasReport, DasRow, MeasuredShare, PlaceFailures, Start,
    TemplateShares, WrongAnswer,
};

impl DasReport {
    /// The report as Markdown: the facts, the best of each rank, and every row.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        self.write_markdown(&mut out).expect("invariant: writing to a string cannot fail");
        out
    }

    fn write_markdown(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# {}\n", self.name)?;
        for fact in self.facts() {
            writeln!(out, "- {fact}")?;
        }
        writeln!(out, "\n## The best of each rank\n")?;
        let best: Vec<&DasRow> = self.options.ranks.iter().filter_map(|&r| self.best(r)).collect();
        write_rows(out, &best)?;
        for (heading, heads, rows) in self.details() {
            writeln!(out, "\n## {heading}\n\n| {} |", heads.join(" | "))?;
            writeln!(out, "|{}", " --- |".repeat(heads.len()))?;
            for row in rows {
                let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
                writeln!(out, "| {} |", cells.join(" | "))?;
            }
        }
        writeln!(out, "\n## Every place\n")?;
        write_rows(out, &self.rows.iter().collect::<Vec<_>>())
    }

    /// Further tables: shares of each template, and prompts that fail. Each is a heading, column heads and rows.
    pub(crate) fn details(&self) -> Vec<(String, Vec<String>, Vec<Vec<String>>)> {
        let heads = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let mut tables = Vec::new();
        if self.templates.len() > 1 {
            let best: Vec<&DasRow> =
                self.options.ranks.iter().filter_map(|&rank| self.best(rank)).collect();
            let mut names: Vec<String> = heads(&["template", "right by itself", "no swap"]);
            names.extend(
                best.iter().map(|row| {
                    format!("IIA of {} at {}, rank {}", row.site, row.position, row.rank)
                }),
            );
            let of_template = |(i, own): (usize, &TemplateShares)| {
                let mut cells = vec![
                    own.template.clone(),
                    counts(&own.base_accuracy),
                    counts(&own.no_intervention),
                ];
                let found = |row: &&DasRow| row.by_template.get(i).map_or("–".to_owned(), counts);
                cells.extend(best.iter().map(found));
                cells
            };
            let rows = self.templates.iter().enumerate().map(of_template).collect();
            tables.push(("By template".to_owned(), names, rows));
        }
        let row = |own: &WrongAnswer| {
            let texts =
                [Some(&own.base), own.source.as_ref(), Some(&own.expected), Some(&own.given)];
            texts.into_iter().flatten().cloned().collect()
        };
        if !self.wrong_bases.is_empty() {
            let heading = "Bases that the model answers wrong by itself, the first of them";
            let rows = self.wrong_bases.iter().map(row).collect();
            tables.push((heading.to_owned(), heads(&["base", "expected", "given"]), rows));
        }
        for own in self.failures.iter().filter(|own| own.failed > 0) {
            let PlaceFailures { site, position, rank, failed, first } = own;
            let shown = if first.len() < *failed {
                format!(", the first {} of {failed}", first.len())
            } else {
                String::new()
            };
            let heading = format!("What fails at {site}, {position}, rank {rank}{shown}");
            let rows = first.iter().map(row).collect();
            tables.push((heading, heads(&["base", "source", "expected", "given"]), rows));
        }
        tables
    }

    /// Facts that a reader must know, a sentence each.
    pub(crate) fn facts(&self) -> Vec<String> {
        let o = &self.options;
        let mut facts = vec![
            format!(
                "{}Looked for: `{}`, in model `{}`",
                if self.description.is_empty() {
                    String::new()
                } else {
                    format!("{} ", self.description)
                },
                self.variable,
                self.model
            ),
            format!("Held-out counterfactuals: {}, trained on {}", o.test_pairs, o.train_pairs),
            format!("For instance, {}", self.example),
        ];
        facts.extend(self.base_accuracy.map(|a| {
            format!("Without any swap the model gives its base's own answer in {}", share(&a))
        }));
        facts.extend(self.no_intervention.map(|a| {
            format!("Without any swap {} of the held-out counterfactuals are answered as expected: the share of chance", share(&a))
        }));
        facts.push(format!(
            "An answer is the likeliest of the {} that occur in the task",
            self.n_answers
        ));
        facts.push(match o.alignment {
            DasAlignment::Whole => "Swapped: the whole hidden state; nothing is trained".to_owned(),
            DasAlignment::Neurons => {
                "Swapped: the neurons that follow the variable most; nothing is trained".to_owned()
            }
            DasAlignment::Das => format!("Each subspace: {}", training(o)),
            DasAlignment::Boundless => format!(
                "Swapped: the first coordinates of a rotation, rotation and number trained: {}",
                training(o)
            ),
            DasAlignment::SigmoidMask => format!(
                "Swapped: some coordinates of a rotation, rotation and choice trained: {}",
                training(o)
            ),
        });
        facts.extend(self.repeated.filter(|repeated| *repeated > 0).map(|repeated| {
            format!(
                "{repeated} of the {} held-out counterfactuals are word for word among the training ones: with so few words, held-out ones say less about texts that were not seen",
                o.test_pairs
            )
        }));
        facts.push(controls(o));
        facts.push(
            "Intervals are Wilson's, 95 %, of each cell by itself: of many cells some are outside"
                .to_owned(),
        );
        if let Some(seconds) = self.seconds {
            facts.push(format!(
                "Time of the last call: {seconds:.0} s, of which {:.1} s for the runs that all cells share",
                self.run_seconds
            ));
        }
        facts.push(format!("Command: `{}`", self.command));
        facts
    }
}

fn write_rows(out: &mut String, rows: &[&DasRow]) -> std::fmt::Result {
    writeln!(
        out,
        "| site | token | rank | swapped | IIA | 95 % | start | random subspace | neurons | untrained model |\n| --- | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |"
    )?;
    let control =
        |m: &Option<MeasuredShare>| m.map_or("–".to_owned(), |m| format!("{:.3}", m.iia));
    for row in rows {
        let DasRow { site, position, rank, dimensions, found, .. } = row;
        writeln!(
            out,
            "| {site} | {position} | {rank} | {dimensions} | {:.3} | {:.3}–{:.3} | {} | {} | {} | {} |",
            found.iia,
            found.low,
            found.high,
            control(&row.start),
            control(&row.random_rotation),
            control(&row.neurons),
            control(&row.untrained_model)
        )?;
    }
    Ok(())
}

/// The controls that were made.
fn controls(o: &DasOptions) -> String {
    use DasAlignment::{Das, Neurons, Whole};
    let controls = [
        (o.alignment != Whole, "a random subspace of as many dimensions"),
        (
            !matches!(o.alignment, Whole | Neurons),
            "as many neurons, the ones that follow the variable most",
        ),
        (o.untrained_model, "the same search in a model of random weights"),
    ];
    let made: Vec<&str> = controls.into_iter().filter(|own| own.0).map(|own| own.1).collect();
    let mut text = match made.is_empty() {
        true => "Controls: none".to_owned(),
        false => format!("Controls: {}", made.join("; ")),
    };
    if o.alignment == Das {
        text += ". Start: the subspace before it was trained";
    }
    text
}

/// A share as a number, with its counts.
fn counts(m: &MeasuredShare) -> String {
    format!("{:.3} ({} of {})", m.iia, m.hits, m.total)
}

fn training(o: &DasOptions) -> String {
    let start = match o.start {
        Start::Means => "the directions in which the mean follows the variable",
        Start::Random => "random",
    };
    format!(
        "{} of {}, learning rate {} falling to 0, start: {start}, seed {}",
        counted(o.steps, "step"),
        counted(o.batch_size, "counterfactual"),
        o.lr,
        o.seed
    )
}

/// A share with its counts.
pub(crate) fn share(m: &MeasuredShare) -> String {
    format!(
        "{} of {} ({:.1} %, {:.1} to {:.1})",
        m.hits,
        m.total,
        100.0 * m.iia,
        100.0 * m.low,
        100.0 * m.high
    )
}
