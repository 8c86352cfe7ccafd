use std::fmt::Write;

use crate::{DasAlignment, DasOptions, DasReport, DasRow, MeasuredShare, Start};

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
        writeln!(out, "\n## Every place\n")?;
        write_rows(out, &self.rows.iter().collect::<Vec<_>>())
    }

    /// What a reader must know, a sentence each.
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
            format!("Without any swap {} of the held-out counterfactuals are answered as expected: what chance gives", share(&a))
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
        facts.push(
            "Controls: a random subspace of as many dimensions; as many neurons, those that follow the variable most; and the same search in a model of random weights. Start: the subspace before it was trained".to_owned(),
        );
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

fn training(o: &DasOptions) -> String {
    let start = match o.start {
        Start::Means => "the directions in which the mean follows the variable",
        Start::Random => "random",
    };
    format!(
        "{} steps of {} counterfactuals, learning rate {} falling to 0, start: {start}, seed {}",
        o.steps, o.batch_size, o.lr, o.seed
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
