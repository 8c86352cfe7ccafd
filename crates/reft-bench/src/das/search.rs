use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use reft_models::{Decoder, Place, Tokenizer};
use reft_train::das::{Accuracy, likeliest, source_states};
use reft_train::{FrozenStore, ReuseConfig};
use serde_json::json;
use sha2::{Digest, Sha256};
use tch::Tensor;

use crate::compare::hex;
use crate::das::cell::{CellFile, DasCell, MeasuredShare};
use crate::das::group::{self, Planned, Runs};
use crate::das::options::DasOptions;
use crate::das::pairs::{Pairs, draw_pairs};
use crate::das::place::Part;
use crate::das::position::PositionName;
use crate::das::report::{DasReport, DasRow};
use crate::das::searched::Searched;
use crate::das::task::DasTask;
use crate::error::{Error, Result};

/// A search with everything read and checked.
pub struct DasSearch<'a> {
    /// What is searched, and how.
    pub options: DasOptions,
    /// The model.
    searched: &'a dyn Searched,
    /// What the model is called.
    model: String,
    /// The command that began it.
    command: String,
    about: About,
    /// Layers with their parts: the layer, the part, its place.
    places: Vec<(usize, Part, Place)>,
    pairs: Pairs,
}

/// What a report says of a task.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) variable: String,
    /// Everything of the task that numbers depend on.
    pub(crate) identity: String,
}

/// A model with what its runs are known to be.
struct Subject<'a> {
    is_untrained: bool,
    runs: Runs<'a>,
    /// For each position and place `[n, d]`.
    sources: Vec<Vec<Tensor>>,
}

/// Inputs run at once where the model runs by itself.
const EVAL_BATCH: usize = 32;

impl<'a> DasSearch<'a> {
    /// Draws the counterfactuals and checks that the model has what is asked for.
    ///
    /// # Errors
    /// [`Error::DasTask`] if the task does not fit the model's tokens; [`Error::OptionValue`] for an option that cannot be.
    pub fn new(
        options: DasOptions,
        task: &DasTask,
        (decoder, tokenizer): (&'a Decoder, &Tokenizer),
        names: (String, String),
    ) -> Result<Self> {
        let mut positions = Vec::new();
        for name in &options.positions {
            let position: PositionName = name
                .parse()
                .map_err(|reason| Error::DasTask { task: task.name.clone(), reason })?;
            if let Some(slot) = position.slot().filter(|slot| !task.slots.contains_key(*slot)) {
                let slots: Vec<&str> = task.slots.keys().map(String::as_str).collect();
                let expected =
                    format!("last, a number, or a slot of the task: {}", slots.join(", "));
                let (option, found) = ("position", slot.to_owned());
                return Err(Error::OptionValue { option, found, expected });
            }
            positions.push(position);
        }
        let about = About {
            name: task.name.clone(),
            description: task.description.clone(),
            variable: task.variable.clone(),
            identity: format!("{task:?}"),
        };
        let (n, seed) = (options.train_pairs + options.test_pairs, options.seed);
        let draw = || draw_pairs(task, tokenizer, &positions, n, seed);
        Self::with_pairs(options, about, decoder, draw, names)
    }

    /// A search on any model; `draw` is called once the options are checked.
    pub(crate) fn with_pairs(
        mut options: DasOptions,
        about: About,
        searched: &'a dyn Searched,
        draw: impl FnOnce() -> Result<Pairs>,
        (model, command): (String, String),
    ) -> Result<Self> {
        let (mut places, mut size) = (Vec::new(), None);
        for name in &options.components {
            let part: Part = name.parse()?;
            for &layer in options.layers.iter().filter(|&&layer| layer < searched.layers()) {
                let (place, d) = searched.place(layer, part)?;
                if *size.get_or_insert(d) != d && !options.alignment.takes_rank() {
                    let expected = "sites of one size, as all of it is rotated";
                    let (option, found) = ("site", options.components.join(","));
                    return Err(Error::OptionValue { option, found, expected: expected.into() });
                }
                if let Some(rank) = options.ranks.iter().find(|&&rank| rank < 1 || rank > d) {
                    let expected = format!("1 to {d}, the size of {part}");
                    let (option, found) = ("rank", rank.to_string());
                    return Err(Error::OptionValue { option, found, expected });
                }
                places.push((layer, part, place));
            }
        }
        if !options.alignment.takes_rank() {
            if let Some(rank) = options.ranks.first() {
                let expected = format!("none, as {} has no given rank", options.alignment.name());
                let (option, found) = ("rank", rank.to_string());
                return Err(Error::OptionValue { option, found, expected });
            }
            options.ranks.extend(size);
        }
        options.check(searched.layers())?;
        let pairs = draw()?;
        if pairs.answers.len() < 2 {
            let reason = "all answers are the same; expected a variable that changes the answer";
            return Err(Error::DasTask { task: about.name, reason: reason.to_owned() });
        }
        Ok(Self { options, searched, model, command, about, places, pairs })
    }

    /// Number of subspaces to be trained, those of the control among them.
    pub fn n_cells(&self) -> usize {
        self.places.len()
            * self.options.positions.len()
            * self.options.ranks.len()
            * (1 + usize::from(self.options.untrained_model))
    }

    /// Searches what is not found yet, and writes `das.json`, `das.md` and `das.html` after each position; every trained subspace is in
    /// the directory of its cell. `say` hears of each cell.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if `stop` is set: what is finished is kept. What the model or files refuse.
    pub fn run(
        &self,
        output: &Path,
        stop: &AtomicBool,
        say: &mut dyn FnMut(&str),
    ) -> Result<DasReport> {
        let started = Instant::now();
        let mut report = self.empty_report();
        let mut subject = self.subject(self.searched, false)?;
        let Runs { model, frozen } = &mut subject.runs;
        let (bases, answers) = (&self.pairs.bases, &self.pairs.answers);
        let given = likeliest(*model, &[], bases, EVAL_BATCH, answers, Some(frozen))?;
        let total = given.len();
        let share = |hits| MeasuredShare::from(Accuracy { hits, total });
        let own =
            given.iter().zip(&self.pairs.own_answers).filter(|(given, own)| given[0] == **own);
        report.base_accuracy = Some(share(own.count()));
        let tests = self.options.train_pairs..;
        let expected = given.iter().zip(&self.pairs.bases).skip(tests.start);
        let hits = expected.filter(|(given, base)| base.labels.ends_with(given)).count();
        let total = self.options.test_pairs;
        report.no_intervention = Some(Accuracy { hits, total }.into());
        report.run_seconds = started.elapsed().as_secs_f64();
        say(&format!(
            "{} of {} bases answered right; their runs and those of the sources took {:.1} s",
            report.base_accuracy.map_or(0, |a| a.hits),
            given.len(),
            report.run_seconds
        ));
        report.write(output)?;
        self.search(&mut subject, &mut report, output, stop, say)?;
        drop(subject);
        if self.options.untrained_model {
            let model = self.searched.untrained(self.options.seed)?;
            let mut subject = self.subject(&*model, true)?;
            self.search(&mut subject, &mut report, output, stop, say)?;
        }
        report.seconds = Some(started.elapsed().as_secs_f64());
        report.write(output)?;
        Ok(report)
    }

    fn search(
        &self,
        subject: &mut Subject,
        report: &mut DasReport,
        output: &Path,
        stop: &AtomicBool,
        say: &mut dyn FnMut(&str),
    ) -> Result<()> {
        for p in 0..self.options.positions.len() {
            let mut found: BTreeMap<(usize, usize), (DasCell, CellFile)> = BTreeMap::new();
            let searched = self.at_position(subject, p, output, &mut found, stop, say);
            for (cell, file) in found.values() {
                report.add(cell, file);
            }
            report.write(output)?;
            searched?;
        }
        Ok(())
    }

    /// Finds every cell of a token, by place and rank.
    fn at_position(
        &self,
        subject: &mut Subject,
        p: usize,
        output: &Path,
        found: &mut BTreeMap<(usize, usize), (DasCell, CellFile)>,
        stop: &AtomicBool,
        say: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let options = &self.options;
        let at_once = group::cells_at_once(options, &self.pairs, p);
        for (r, &rank) in options.ranks.iter().enumerate() {
            let mut planned = Vec::new();
            for (s, (layer, part, place)) in self.places.iter().enumerate() {
                let cell = DasCell {
                    layer: *layer,
                    part: *part,
                    position: options.positions[p].clone(),
                    alignment: options.alignment,
                    rank,
                    untrained_model: subject.is_untrained,
                };
                let (directory, identity) = (cell.directory(output), self.identity(&cell));
                if let Some(file) = CellFile::read(&directory, &identity)? {
                    found.insert((s, r), (cell, file));
                    continue;
                }
                let (place, sources) = (place.clone(), subject.sources[p][s].shallow_clone());
                let plan = Planned { cell, place, position: p, sources, identity, directory };
                planned.push((s, plan));
            }
            planned.sort_by_key(|(_, planned)| planned.place.site.stage());
            // parts of one size only can share a rotation's tensor
            for of_size in planned.chunk_by(|a, b| a.1.sources.size() == b.1.sources.size()) {
                let (numbers, of_size): (Vec<usize>, Vec<&Planned>) =
                    of_size.iter().map(|(s, planned)| (*s, planned)).unzip();
                let groups = numbers.chunks(at_once).zip(of_size.chunks(at_once));
                for (numbers, group) in groups {
                    let files =
                        group::search(options, &self.pairs, &mut subject.runs, group, stop)?;
                    for ((s, planned), file) in numbers.iter().zip(group).zip(files) {
                        let (name, iia) = (planned.cell.name(), file.found.iia);
                        say(&format!("{name}: IIA {iia:.3}, {:.1} s", file.seconds));
                        found.insert((*s, r), (planned.cell.clone(), file));
                    }
                }
            }
        }
        Ok(())
    }

    /// Runs the sources, once for all places and positions.
    fn subject<'d>(&self, searched: &'d dyn Searched, is_untrained: bool) -> Result<Subject<'d>> {
        let mut wanted = Vec::new();
        for (_, tokens) in &self.pairs.tokens {
            wanted.extend(self.places.iter().map(|(_, _, place)| (place.clone(), tokens.clone())));
        }
        let model = searched.model();
        let found = source_states(model, &self.pairs.sources, &wanted, EVAL_BATCH)?;
        let mut found = found.into_iter();
        let of_position = |_: &String| found.by_ref().take(self.places.len()).collect();
        let sources = self.options.positions.iter().map(of_position).collect();
        let frozen = FrozenStore::of_whole_rows(ReuseConfig::default());
        Ok(Subject { is_untrained, runs: Runs { model, frozen }, sources })
    }

    /// Digest of everything that a cell's numbers depend on: other cells are not among it, so a search can be widened.
    fn identity(&self, cell: &DasCell) -> String {
        let options = &self.options;
        let model = self.searched.model();
        let all = json!({
            "model": self.model,
            "kind": format!("{:?}", model.kind()),
            "device": format!("{:?}", model.device()),
            "task": self.about.identity,
            "pairs": [options.train_pairs, options.test_pairs],
            "training": [options.steps, options.batch_size],
            "lr": options.lr,
            "start": options.start,
            "seed": options.seed,
            "cell": cell.name(),
            "report": DasReport::FORMAT_VERSION,
        });
        hex(&Sha256::digest(all.to_string()))
    }

    fn empty_report(&self) -> DasReport {
        DasReport {
            format_version: DasReport::FORMAT_VERSION,
            name: self.about.name.clone(),
            description: self.about.description.clone(),
            variable: self.about.variable.clone(),
            model: self.model.clone(),
            command: self.command.clone(),
            options: self.options.clone(),
            example: self.pairs.example.clone(),
            n_answers: self.pairs.answers.len(),
            base_accuracy: None,
            no_intervention: None,
            run_seconds: 0.0,
            seconds: None,
            rows: Vec::<DasRow>::new(),
        }
    }
}
