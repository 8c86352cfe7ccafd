//! The model card: `README.md` beside an adapter, in the form that the hub reads.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;
use reft_bench::TrainingRun;
use reft_methods::{AdapterFiles, declarations};
use reft_models::write_text;
use reft_report::{grouped, seconds};
use reft_train::{ObjectiveDeclaration, Plan};
use toml::Table;

use crate::sharing::model_card::{CARD, FrontMatter};

/// Mark of a card that a run wrote. A later run replaces such a card, and leaves a card without the mark unchanged.
const MARK: &str = "<!-- Written by `reft train`; without this line it is left as it is. -->";

/// Facts for a card that the run's files do not hold.
#[derive(Debug)]
pub struct Card<'a> {
    /// The base model by its hub name, or by the name of its directory.
    pub base_model: &'a str,
    /// The licence, as the hub names it.
    pub license: Option<&'a str>,
    /// SHA-256 of the examples.
    pub data_digest: &'a str,
    /// The template of the rows, if the model has a tokenizer.
    pub template: Option<String>,
    /// Examples trained on, and held out.
    pub examples: (usize, usize),
    /// The run's plan, with the number of trained parameters.
    pub plan: &'a Plan,
    /// The objective.
    pub objective: &'static ObjectiveDeclaration,
}

impl Card<'_> {
    /// Writes the card of a finished run, unless somebody has written one.
    ///
    /// # Errors
    /// If the run cannot be read, or the card not be written.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(CARD);
        if path.exists() && !is_ours(&path) {
            return Ok(());
        }
        let run = TrainingRun::read(directory)?;
        Ok(write_text(&path, &self.text(&run)?)?)
    }

    fn text(&self, run: &TrainingRun) -> Result<String> {
        let option = |name: &str| text_of(&run.options, name);
        let method = option("method").unwrap_or_default();
        let is_of_peft =
            declarations(&method)?.iter().all(|own| matches!(own.files, AdapterFiles::Peft(_)));
        let front = FrontMatter {
            base_model: self.base_model,
            is_of_peft,
            license: self.license,
            method: &method,
        };
        let mut out = front.text();
        let base = self.base_model;
        writeln!(out, "{MARK}\n\n# {}\n", run.name)?;
        writeln!(
            out,
            "A `{method}` adapter of **{base}**: the model's own weights are unchanged.\n"
        )?;
        writeln!(out, "| | |\n| --- | --- |")?;
        let (train, held_out) = self.examples;
        let last = run.steps.last();
        let best = run.best().map(|best| format!("{best}, which is kept"));
        let rows = [
            ("layers", option("layers")),
            ("positions", option("positions")),
            ("rank", option("rank")),
            ("learned", self.objective.told.map(|_| self.objective.to_string())),
            ("trained parameters", Some(grouped(self.plan.of_adapters() as i64))),
            (
                "parameters of the head",
                Some(self.plan.of_objective).filter(|n| *n > 0).map(|n| grouped(n as i64)),
            ),
            ("examples", Some(format!("{train}, and {held_out} held out"))),
            ("SHA-256 of the examples as tokens", Some(format!("`{}`", self.data_digest))),
            ("template", self.template.clone()),
            ("steps", last.map(|step| format!("{} in {}", step.step, seconds(run.seconds())))),
            (
                "training loss",
                run.steps
                    .first()
                    .zip(last)
                    .map(|(first, last)| format!("{:.4} → {:.4}", first.loss, last.loss)),
            ),
            ("validation", best),
            ("trained with", Some(format!("reft {}", env!("CARGO_PKG_VERSION")))),
        ];
        for (name, value) in rows {
            if let Some(value) = value {
                writeln!(out, "| {name} | {} |", value.replace('|', "\\|"))?;
            }
        }
        out += &match self.objective.told {
            None => front.use_it(&run.name),
            Some(_) => format!(
                "\n## Use it\n\n```\nreft eval --model {base} --adapter {} --task {} --data FILE\n```\n\n",
                run.name, self.objective
            ),
        };
        writeln!(out, "`train.toml` has every option, and makes the same run again:\n")?;
        writeln!(
            out,
            "```\nreft train --config train.toml --model {base} --data FILE --output DIR\n```"
        )?;
        Ok(out)
    }
}

/// An option as a text.
fn text_of(options: &Table, name: &str) -> Option<String> {
    match options.get(name)? {
        toml::Value::String(text) => Some(text.clone()),
        value => Some(value.to_string()),
    }
}

fn is_ours(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.contains(MARK))
}

/// Removes the card of a run, if the run wrote it.
///
/// # Errors
/// Errors of the file system.
pub fn remove_card(directory: &Path) -> std::io::Result<()> {
    let path = directory.join(CARD);
    if is_ours(&path) { fs::remove_file(path) } else { Ok(()) }
}
