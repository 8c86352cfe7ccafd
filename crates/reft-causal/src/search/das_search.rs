use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use reft_models::{Claim, DirectoryLock, Place, Tokenizer};
use serde_json::json;
use sha2::{Digest, Sha256};
use tch::Tensor;

use crate::search::group::{self, PlannedCell};
use crate::search::tasks::pairs::{Pairs, draw_pairs};
use crate::{
    Accuracy, BaseRuns, CellFile, ComponentOrHead, DasCell, DasOptions, DasReport, DasTask, Error,
    PositionName, Result, Searched, refuse, source_states,
};

/// A search with everything read and checked.
pub struct DasSearch<'a> {
    searched: &'a dyn Searched,
    /// The task as a text, for the digest of each cell.
    task: String,
    /// The places to search: layer, component or head, and the place that hooks edit.
    places: Vec<(usize, ComponentOrHead, Place)>,
    pairs: Pairs,
    /// The report before anything is found.
    report: DasReport,
}

/// The runs of a model that all cells share.
struct SharedRuns<'a> {
    is_untrained: bool,
    base: BaseRuns<'a>,
    /// The sources' hidden states `[n, d]` for each position and place.
    sources: Vec<Vec<Tensor>>,
}

/// A call of a search.
struct Call<'c> {
    output: &'c Path,
    stop: &'c AtomicBool,
    say: &'c mut dyn FnMut(&str),
    report: DasReport,
}

/// The indices of a cell's position, place and rank, which order the report.
type Number = (usize, usize, usize);

type FoundCells = BTreeMap<Number, (DasCell, CellFile)>;

/// A cell that this process has claimed.
struct Taken {
    number: Number,
    planned: PlannedCell,
    /// The result, if another process has written it since the search was planned.
    known: Option<CellFile>,
    _claim: Claim,
}

/// How often the cells of other processes are checked.
const LOOK: Duration = Duration::from_millis(300);

/// Claims the next cells to search together and removes them from `left`; empty if other processes hold all of them. Only cells of one
/// token, rank and size are trained together, and at most this process's share of `left`.
fn take_free(
    left: &mut Vec<(Number, PlannedCell)>,
    processes: usize,
    at_once: impl Fn(&PlannedCell) -> usize,
) -> Result<Vec<Taken>> {
    let share = left.len().div_ceil(processes.max(1));
    let mut taken: Vec<Taken> = Vec::new();
    for (number, planned) in std::mem::take(left) {
        let fits = taken.first().is_none_or(|Taken { planned: first, .. }| {
            taken.len() < at_once(first).min(share)
                && first.position == planned.position
                && first.cell.rank == planned.cell.rank
                && first.sources.size() == planned.sources.size()
        });
        match if fits { Claim::take(&planned.directory)? } else { None } {
            Some(claim) => {
                let known = CellFile::read(&planned.directory, &planned.identity)?;
                taken.push(Taken { number, planned, known, _claim: claim });
            }
            None => left.push((number, planned)),
        }
    }
    Ok(taken)
}

/// Rows per batch in runs without swaps.
const EVAL_BATCH: usize = 32;

impl<'a> DasSearch<'a> {
    /// Draws the counterfactuals and checks the options against the task and the model.
    ///
    /// # Errors
    /// [`Error::DasTask`] if the task does not fit the model's tokens; [`Error::OptionValue`] for an option with an invalid value.
    pub fn new(
        options: DasOptions,
        task: &DasTask,
        (searched, tokenizer): (&'a dyn Searched, &Tokenizer),
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
                return refuse("position", slot, expected);
            }
            positions.push(position);
        }
        let (n, seed) = (options.train_pairs.saturating_add(options.test_pairs), options.seed);
        let draw = || draw_pairs(task, tokenizer, &positions, n, seed);
        let DasTask { name, description, variable, .. } = task;
        let report = DasReport::empty(options, [name, description, variable], names);
        Self::with_pairs(report, format!("{task:?}"), searched, draw)
    }

    /// Sets the digest of the model's weights ([`reft_models::weights_digest`]). Results on disk are used only if they have the same digest.
    pub fn with_weights(mut self, digest: String) -> Self {
        self.report.weights = Some(digest);
        self
    }

    /// A search on any model; `draw` is called once the options are checked.
    pub(crate) fn with_pairs(
        mut report: DasReport,
        task: String,
        searched: &'a dyn Searched,
        draw: impl FnOnce() -> Result<Pairs>,
    ) -> Result<Self> {
        let options = &mut report.options;
        let (mut places, mut size) = (Vec::new(), None);
        let layers = searched.model().description().num_hidden_layers;
        for name in &options.components {
            let of_layer: ComponentOrHead = name.parse()?;
            for &layer in options.layers.iter().filter(|&&layer| layer < layers) {
                let (place, d) = searched.place(layer, of_layer)?;
                if *size.get_or_insert(d) != d && !options.alignment.takes_rank() {
                    let expected = "sites of one size, as all of it is rotated";
                    return refuse("site", options.components.join(","), expected);
                }
                if let Some(rank) = options.ranks.iter().find(|&&rank| rank < 1 || rank > d) {
                    let expected = format!("1 to {d}, the size of {of_layer}");
                    return refuse("rank", rank.to_string(), expected);
                }
                places.push((layer, of_layer, place));
            }
        }
        if !options.alignment.takes_rank() {
            if let Some(rank) = options.ranks.first() {
                let expected = format!("none, as {} has no given rank", options.alignment.name());
                return refuse("rank", rank.to_string(), expected);
            }
            options.ranks.extend(size);
        }
        options.check(layers)?;
        let pairs = draw()?;
        if pairs.answers.len() < 2 {
            let reason = "all answers are the same; expected a variable that changes the answer";
            return Err(Error::DasTask { task: report.name, reason: reason.to_owned() });
        }
        (report.example, report.n_answers) = (pairs.example.clone(), pairs.answers.len());
        report.repeated = pairs.repeated(report.options.train_pairs);
        Ok(Self { searched, task, places, pairs, report })
    }

    /// Number of subspaces to be trained, including the control's.
    pub fn n_cells(&self) -> usize {
        let DasOptions { positions, ranks, untrained_model, .. } = &self.report.options;
        self.places.len() * positions.len() * ranks.len() * (1 + usize::from(*untrained_model))
    }

    /// Searches the cells without a result, and writes `das.json`, `das.md` and `das.html` after each position; every trained subspace is in
    /// the directory of its cell. `say` receives a line for each cell.
    ///
    /// Several processes may search in one directory: each claims free cells, and each returns only when all cells have results. A process
    /// claims at most its share of the remaining cells at once.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if `stop` is set: finished cells are kept. Errors of the model and of files.
    pub fn run(
        &self,
        output: &Path,
        stop: &AtomicBool,
        say: &mut dyn FnMut(&str),
    ) -> Result<DasReport> {
        let started = Instant::now();
        let _joined = Claim::join(output)?;
        let known = self.report.clone().going_on_in(output)?;
        let runs = self.shared_runs(self.searched, false)?;
        let (bases, options) = (&self.pairs.bases, &self.report.options);
        let given = runs.base.likeliest(bases, EVAL_BATCH, &self.pairs.answers)?;
        let own =
            given.iter().zip(&self.pairs.own_answers).filter(|(given, own)| given[0] == **own);
        let base_accuracy = Accuracy { hits: own.count(), total: bases.len() };
        let held_out = given.iter().zip(bases).skip(options.train_pairs);
        let hits = held_out.filter(|(given, base)| base.labels().ends_with(given)).count();
        let no_intervention = Accuracy { hits, total: options.test_pairs };
        let run_seconds = started.elapsed().as_secs_f64();
        say(&format!(
            "{} of {} bases answered right; their runs and those of the sources took {run_seconds:.1} s",
            base_accuracy.hits, base_accuracy.total
        ));
        let given: Vec<i64> = given.iter().map(|given| given[0]).collect();
        let report = DasReport {
            base_accuracy: Some(base_accuracy.into()),
            no_intervention: Some(no_intervention.into()),
            templates: self.pairs.without_swaps(&given, options.train_pairs),
            wrong_bases: self.pairs.wrong_bases(&given),
            run_seconds,
            ..known
        };
        {
            let _lock = DirectoryLock::wait(output)?;
            report.write(output)?;
        }
        let mut call = Call { output, stop, say, report };
        self.search(&runs, &mut call)?;
        drop(runs);
        if self.report.options.untrained_model {
            let model = self.searched.untrained(self.report.options.seed)?;
            self.search(&self.shared_runs(&*model, true)?, &mut call)?;
        }
        call.report.seconds = Some(started.elapsed().as_secs_f64());
        call.report.write(output)?;
        Ok(call.report)
    }

    /// Searches every cell of a model, and writes the report whenever a position is finished.
    fn search(&self, runs: &SharedRuns, call: &mut Call) -> Result<()> {
        let before = call.report.clone();
        let (mut found, mut left) = self.plan(runs, call)?;
        for position in 0..self.report.options.positions.len() {
            let mut ended = Ok(());
            while ended.is_ok() && left.iter().any(|((of, ..), _)| *of == position) {
                ended = self.search_some(runs, (&mut left, &mut found), call);
            }
            call.report = before.clone();
            for (cell, file) in found.values() {
                call.report.add(cell, file);
            }
            self.pairs.tell_failures(&mut call.report);
            call.report.write(call.output)?;
            ended?;
        }
        Ok(())
    }

    /// The cells with results, and the remaining cells in the order in which they are searched.
    fn plan(
        &self,
        runs: &SharedRuns,
        call: &Call,
    ) -> Result<(FoundCells, Vec<(Number, PlannedCell)>)> {
        let options = &self.report.options;
        let (mut found, mut left) = (FoundCells::new(), Vec::new());
        for (position, name) in options.positions.iter().enumerate() {
            for (r, &rank) in options.ranks.iter().enumerate() {
                for (p, (layer, of_layer, place)) in self.places.iter().enumerate() {
                    let cell = DasCell {
                        layer: *layer,
                        of_layer: *of_layer,
                        position: name.clone(),
                        alignment: options.alignment,
                        rank,
                        untrained_model: runs.is_untrained,
                    };
                    let (directory, identity) =
                        (cell.directory(call.output), self.identity(&cell, &call.report));
                    let number = (position, p, r);
                    if let Some(file) = CellFile::read(&directory, &identity)? {
                        found.insert(number, (cell, file));
                        continue;
                    }
                    let (place, sources) =
                        (place.clone(), runs.sources[position][p].shallow_clone());
                    let cell = PlannedCell { cell, place, position, sources, identity, directory };
                    left.push((number, cell));
                }
            }
        }
        left.sort_by_key(|((position, _, r), planned)| (*position, *r, planned.place.site.stage()));
        Ok((found, left))
    }

    /// Searches the next free cells, or waits a moment if other processes hold all that remain.
    fn search_some(
        &self,
        runs: &SharedRuns,
        (left, found): (&mut Vec<(Number, PlannedCell)>, &mut FoundCells),
        call: &mut Call,
    ) -> Result<()> {
        let options = &self.report.options;
        let at_once =
            |cell: &PlannedCell| group::cells_at_once(options, &self.pairs, cell.position);
        let taken = take_free(left, Claim::joined(call.output), at_once)?;
        if taken.is_empty() {
            if call.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            thread::sleep(LOOK);
        }
        let (known, group): (Vec<_>, Vec<_>) =
            taken.into_iter().partition(|taken| taken.known.is_some());
        for Taken { number, planned, known, .. } in known {
            found.extend(known.map(|file| (number, (planned.cell, file))));
        }
        if group.is_empty() {
            return Ok(());
        }
        let cells: Vec<&PlannedCell> = group.iter().map(|taken| &taken.planned).collect();
        let files = group::search(options, &self.pairs, &runs.base, &cells, call.stop)?;
        for (Taken { number, planned, .. }, file) in group.into_iter().zip(files) {
            let (name, iia) = (planned.cell.name(), file.found.iia);
            (call.say)(&format!("{name}: IIA {iia:.3}, {:.1} s", file.seconds));
            found.insert(number, (planned.cell, file));
        }
        Ok(())
    }

    /// Runs the sources, once for all places and positions.
    fn shared_runs<'d>(
        &self,
        searched: &'d dyn Searched,
        is_untrained: bool,
    ) -> Result<SharedRuns<'d>> {
        let mut wanted = Vec::new();
        for (_, tokens) in &self.pairs.tokens {
            wanted.extend(self.places.iter().map(|(_, _, place)| (place.clone(), tokens.clone())));
        }
        let found = source_states(searched.model(), &self.pairs.sources, &wanted, EVAL_BATCH)?;
        let mut found = found.into_iter();
        let of_position = |_: &String| found.by_ref().take(self.places.len()).collect();
        let sources = self.report.options.positions.iter().map(of_position).collect();
        Ok(SharedRuns { is_untrained, base: searched.base_runs(), sources })
    }

    /// Digest of everything that a cell's numbers depend on. Other cells are not part of it, so a search can be extended.
    fn identity(&self, cell: &DasCell, report: &DasReport) -> String {
        let is_by_name = report.format_version == 2;
        let weights = report.weights.as_ref().filter(|_| !is_by_name);
        let options = &self.report.options;
        let model = self.searched.model();
        let all = json!({
            "model": weights.unwrap_or(&report.model),
            "kind": format!("{:?}", model.kind()),
            "device": format!("{:?}", model.device()),
            "task": self.task,
            "pairs": [options.train_pairs, options.test_pairs],
            "training": [options.steps, options.batch_size],
            "lr": options.lr,
            "start": options.start,
            "seed": options.seed,
            "cell": cell.name(),
            "report": report.format_version,
        });
        Sha256::digest(all.to_string()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reft_models::{Component, Site};
    use tch::{Device, Kind};

    type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

    fn planned(directory: &Path, (position, p, rank): Number) -> (Number, PlannedCell) {
        let cell = DasCell {
            layer: p,
            of_layer: "block_output".parse().expect("a component"),
            position: "last".parse().expect("a position"),
            alignment: crate::DasAlignment::Das,
            rank: rank as i64,
            untrained_model: false,
        };
        let planned = PlannedCell {
            place: Place::whole(Site { layer: p, component: Component::BlockOutput }),
            position,
            sources: Tensor::zeros([1, 4], (Kind::Float, Device::Cpu)),
            identity: String::new(),
            directory: directory.join(format!("{position}-{p}-{rank}")),
            cell,
        };
        ((position, p, rank), planned)
    }

    #[test]
    fn a_process_takes_its_share_of_cells_that_can_be_trained_together() -> TestResult {
        let directory = tempfile::tempdir()?;
        let numbers = [(0, 0, 1), (0, 1, 1), (0, 2, 1), (0, 0, 2), (1, 0, 1), (1, 1, 1)];
        let mut left: Vec<_> =
            numbers.iter().map(|&number| planned(directory.path(), number)).collect();
        let mut held = Vec::new();
        let mut next = |processes| -> Result<Vec<Number>> {
            let taken = take_free(&mut left, processes, |_| 8)?;
            let numbers = taken.iter().map(|taken| taken.number).collect();
            held.extend(taken);
            Ok(numbers)
        };
        assert_eq!(next(3)?, [(0, 0, 1), (0, 1, 1)]); // two of six
        assert_eq!(next(2)?, [(0, 2, 1)]); // two of four, but only one of that rank
        assert_eq!(next(1)?, [(0, 0, 2)]);
        assert_eq!(next(2)?, [(1, 0, 1)]);
        // another process holds the last cell
        let elsewhere = Claim::take(&directory.path().join("1-1-1"))?;
        assert!(elsewhere.is_some() && next(2)?.is_empty());
        drop(elsewhere);
        assert_eq!(next(2)?, [(1, 1, 1)]);
        Ok(())
    }
}
