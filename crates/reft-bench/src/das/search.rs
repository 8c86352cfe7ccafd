use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use reft_core::{AlignmentMethod, AlignmentSet, MapKind, random_columns};
use reft_models::{Component, Decoder, Place, Site, Tokenizer, Weights};
use reft_train::das::{
    Accuracy, Alignment, AlignmentAdapter, VariableSwap, accuracy, likeliest, source_states,
};
use reft_train::{
    Dataset, Example, FrozenStore, Outcome, ReuseConfig, ScheduleKind, Shuffle, Silent,
    TrainConfig, Trainer,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::compare::hex;
use crate::das::cell::{CellFile, DasCell, MeasuredShare};
use crate::das::pairs::{Pairs, draw_pairs};
use crate::das::position::PositionName;
use crate::das::report::{DasReport, DasRow};
use crate::das::subspace::{leading_neurons, mean_directions};
use crate::das::task::DasTask;
use crate::error::{Error, Result, io_error};

/// Where a subspace begins before it is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// At the directions along which the mean hidden state follows the variable.
    #[default]
    Means,
    /// Anywhere.
    Random,
}

/// What is searched, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DasOptions {
    /// Components of blocks.
    pub components: Vec<String>,
    /// Layers.
    pub layers: Vec<usize>,
    /// Tokens, by name.
    pub positions: Vec<String>,
    /// Dimensions of the subspace.
    pub ranks: Vec<i64>,
    /// Counterfactuals to train on.
    pub train_pairs: usize,
    /// Counterfactuals held out.
    pub test_pairs: usize,
    /// Optimizer steps for each subspace.
    pub steps: usize,
    /// Counterfactuals of a step.
    pub batch_size: usize,
    /// Learning rate of the first step; it falls on a line.
    pub lr: f64,
    /// Where a subspace begins.
    pub start: Start,
    /// Whether the same search is made in a model that was never trained.
    pub untrained_model: bool,
    /// Seed of pairs, starts and order.
    pub seed: u64,
}

/// A search with everything read and checked.
pub struct DasSearch<'a> {
    /// What is searched, and how.
    pub options: DasOptions,
    /// The task.
    pub task: &'a DasTask,
    /// The model.
    pub decoder: &'a Decoder,
    /// What the model is called.
    pub model: String,
    /// The command that began it.
    pub command: String,
    components: Vec<Component>,
    pairs: Pairs,
}

/// A model with what its runs are known to be.
struct Subject<'a> {
    decoder: &'a Decoder,
    is_untrained: bool,
    frozen: FrozenStore<'static>,
    /// For each position and site `[n, d]`.
    sources: Vec<Vec<Tensor>>,
}

/// Inputs run at once where nothing is trained.
const EVAL_BATCH: usize = 32;

impl<'a> DasSearch<'a> {
    /// Draws the counterfactuals and checks that the model has what is asked for.
    ///
    /// # Errors
    /// [`Error::DasTask`] if the task does not fit the model's tokens; [`Error::OptionValue`] for an option that cannot be.
    pub fn new(
        options: DasOptions,
        task: &'a DasTask,
        (decoder, tokenizer): (&'a Decoder, &Tokenizer),
        (model, command): (String, String),
    ) -> Result<Self> {
        let refused = |option, found: String, expected: &str| {
            Err(Error::OptionValue { option, found, expected: expected.to_owned() })
        };
        for (option, number) in [
            ("train pairs", options.train_pairs),
            ("test pairs", options.test_pairs),
            ("steps", options.steps),
            ("batch size", options.batch_size),
        ] {
            if number == 0 {
                return refused(option, "0".to_owned(), "at least 1");
            }
        }
        let (layers, d) = (decoder.config().num_hidden_layers, decoder.config().hidden_size);
        if let Some(layer) = options.layers.iter().find(|&&layer| layer >= layers) {
            return refused("layer", layer.to_string(), &format!("0 to {}", layers - 1));
        }
        if let Some(rank) = options.ranks.iter().find(|&&rank| rank < 1 || rank > d) {
            return refused(
                "rank",
                rank.to_string(),
                &format!("1 to {d}, the model's hidden size"),
            );
        }
        let mut positions = Vec::new();
        for name in &options.positions {
            let position: PositionName = name
                .parse()
                .map_err(|reason| Error::DasTask { task: task.name.clone(), reason })?;
            if let Some(slot) = position.slot().filter(|slot| !task.slots.contains_key(*slot)) {
                let slots: Vec<&str> = task.slots.keys().map(String::as_str).collect();
                let expected =
                    format!("last, a number, or a slot of the task: {}", slots.join(", "));
                return refused("position", slot.to_owned(), &expected);
            }
            positions.push(position);
        }
        let parse = |name: &String| name.parse::<Component>();
        let components = options.components.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        if let Some(projection) = components.iter().find(|c| Component::PROJECTIONS.contains(c)) {
            let expected = "block_input, attention_output, mlp_output or block_output";
            return refused("site", projection.to_string(), expected);
        }
        let names = |list: &[i64]| list.iter().map(i64::to_string).collect::<Vec<_>>();
        let layers: Vec<i64> = options.layers.iter().map(|&layer| layer as i64).collect();
        for (option, values) in [
            ("position", options.positions.clone()),
            ("site", options.components.clone()),
            ("rank", names(&options.ranks)),
            ("layer", names(&layers)),
        ] {
            if values.is_empty() {
                return refused(option, "empty".to_owned(), "at least one");
            }
            let twice = values.iter().enumerate().find(|(i, value)| values[..*i].contains(value));
            if let Some((_, value)) = twice {
                return refused(option, format!("{value} twice"), "each once");
            }
        }
        let n = options.train_pairs + options.test_pairs;
        let pairs = draw_pairs(task, tokenizer, &positions, n, options.seed)?;
        if pairs.answers.len() < 2 {
            let reason = "all answers are the same; expected a variable that changes the answer";
            return Err(Error::DasTask { task: task.name.clone(), reason: reason.to_owned() });
        }
        Ok(Self { options, task, decoder, model, command, components, pairs })
    }

    /// Number of subspaces to be trained, those of the control among them.
    pub fn n_cells(&self) -> usize {
        self.sites().len()
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
        let mut subject = self.subject(self.decoder, false)?;
        let given = likeliest(
            self.decoder,
            &[],
            &self.pairs.bases,
            EVAL_BATCH,
            &self.pairs.answers,
            Some(&mut subject.frozen),
        )?;
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
            let decoder = untrained(self.decoder, self.options.seed)?;
            let mut subject = self.subject(&decoder, true)?;
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
        for (p, position) in self.options.positions.iter().enumerate() {
            for (s, site) in self.sites().into_iter().enumerate() {
                for &rank in &self.options.ranks {
                    let cell = DasCell {
                        site,
                        position: position.clone(),
                        rank,
                        untrained_model: subject.is_untrained,
                    };
                    let directory = cell.directory(output);
                    let identity = self.identity(&cell);
                    let found = match CellFile::read(&directory, &identity)? {
                        Some(found) => found,
                        None => {
                            let found =
                                self.cell(subject, &cell, (p, s), identity, (&directory, stop));
                            if matches!(found, Err(Error::Interrupted)) {
                                report.write(output)?;
                            }
                            let found = found?;
                            say(&format!(
                                "{}: IIA {:.3}, {:.1} s",
                                cell.name(),
                                found.found.iia,
                                found.seconds
                            ));
                            found
                        }
                    };
                    report.add(&cell, &found);
                }
            }
            report.write(output)?;
        }
        Ok(())
    }

    /// Trains and measures one subspace, and measures the controls beside it.
    fn cell(
        &self,
        subject: &mut Subject,
        cell: &DasCell,
        (p, s): (usize, usize),
        identity: String,
        (directory, stop): (&Path, &AtomicBool),
    ) -> Result<CellFile> {
        let started = Instant::now();
        let (train, test) = self.pairs.bases.split_at(self.options.train_pairs);
        let sources = subject.sources[p][s].shallow_clone(); // [n, d]
        let learned = sources.narrow(0, 0, train.len() as i64);
        let values = &self.pairs.values[..train.len()];
        let (d, device) = (sources.size()[1], sources.device());
        let adapter = |columns: &Tensor| -> Result<AlignmentAdapter> {
            let set = AlignmentSet::starting_at(AlignmentMethod::Das, MapKind::default(), columns)?;
            let swap = VariableSwap {
                place: Place::whole(cell.site),
                alignment: 0,
                coordinates: 0..cell.rank,
                tokens: self.pairs.tokens[p].0.iter().copied().map(Some).collect(),
                sources: sources.shallow_clone(),
            };
            Ok(AlignmentAdapter::new(Alignment::Rotated(set), vec![swap])?)
        };
        tch::manual_seed(self.options.seed as i64);
        let random = random_columns(1, d, cell.rank, device);
        let start = match self.options.start {
            Start::Means => mean_directions(&learned, values, cell.rank),
            Start::Random => random_columns(1, d, cell.rank, device),
        };
        let mut trained = adapter(&start)?;
        let loss = self.train(subject, &mut trained, train, stop)?;
        let mut measure = |adapter: &AlignmentAdapter| -> Result<MeasuredShare> {
            let (answers, frozen) = (&self.pairs.answers, Some(&mut subject.frozen));
            let found = accuracy(subject.decoder, &[adapter], test, EVAL_BATCH, answers, frozen)?;
            Ok(found.into())
        };
        let found = measure(&trained)?;
        let (mut random_rotation, mut neurons) = (None, None);
        if !cell.untrained_model {
            random_rotation = Some(measure(&adapter(&random)?)?);
            neurons = Some(measure(&adapter(&leading_neurons(&learned, values, cell.rank))?)?);
        }
        std::fs::create_dir_all(directory).map_err(io_error("create", directory))?;
        reft_models::Adapter::save(&trained, directory)?;
        let seconds = started.elapsed().as_secs_f64();
        let file = CellFile { identity, found, random_rotation, neurons, loss, seconds };
        file.write(directory)?;
        Ok(file)
    }

    fn train(
        &self,
        subject: &mut Subject,
        adapter: &mut AlignmentAdapter,
        train: &[Example],
        stop: &AtomicBool,
    ) -> Result<Option<f64>> {
        let dataset = Dataset { train: train.to_vec(), validation: Vec::new() };
        let config = TrainConfig {
            max_steps: Some(self.options.steps),
            batch_size: self.options.batch_size,
            lr: self.options.lr,
            schedule: ScheduleKind::Linear,
            shuffle: Shuffle::Plain,
            seed: self.options.seed,
            validation: 0.0,
            ..TrainConfig::default()
        };
        let frozen =
            std::mem::replace(&mut subject.frozen, FrozenStore::new(ReuseConfig::default()));
        let trainer = Trainer::new(subject.decoder, adapter, &dataset, config)?;
        let mut trainer = trainer.with_store(frozen);
        let outcome = trainer.run(&mut Silent, stop)?;
        if let Some(frozen) = trainer.into_store() {
            subject.frozen = frozen;
        }
        match outcome {
            Outcome::Finished(summary) => Ok(summary.loss),
            Outcome::Interrupted(_) => Err(Error::Interrupted),
        }
    }

    /// Runs the sources, once for all sites and positions.
    fn subject<'d>(&self, decoder: &'d Decoder, is_untrained: bool) -> Result<Subject<'d>> {
        let sites = self.sites();
        let mut wanted = Vec::new();
        for (_, tokens) in &self.pairs.tokens {
            wanted.extend(sites.iter().map(|&site| (Place::whole(site), tokens.clone())));
        }
        let found = source_states(decoder, &self.pairs.sources, &wanted, EVAL_BATCH)?;
        let mut found = found.into_iter();
        let of_position = |_: &String| found.by_ref().take(sites.len()).collect();
        let sources = self.options.positions.iter().map(of_position).collect();
        let frozen = FrozenStore::of_whole_rows(ReuseConfig::default());
        Ok(Subject { decoder, is_untrained, frozen, sources })
    }

    fn sites(&self) -> Vec<Site> {
        let of =
            |&component| self.options.layers.iter().map(move |&layer| Site { layer, component });
        self.components.iter().flat_map(of).collect()
    }

    /// Digest of everything that a cell's numbers depend on: other cells are not among it, so a search can be widened.
    fn identity(&self, cell: &DasCell) -> String {
        let options = &self.options;
        let all = json!({
            "model": self.model,
            "kind": format!("{:?}", self.decoder.kind()),
            "device": format!("{:?}", self.decoder.device()),
            "task": format!("{:?}", self.task),
            "pairs": [options.train_pairs, options.test_pairs],
            "training": [options.steps, options.batch_size],
            "lr": options.lr,
            "start": options.start,
            "seed": options.seed,
            "cell": cell.name(),
        });
        hex(&Sha256::digest(all.to_string()))
    }

    fn empty_report(&self) -> DasReport {
        DasReport {
            format_version: DasReport::FORMAT_VERSION,
            name: self.task.name.clone(),
            description: self.task.description.clone(),
            variable: self.task.variable.clone(),
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

/// A model of the same shape whose weights are random.
fn untrained(decoder: &Decoder, seed: u64) -> Result<Decoder> {
    tch::manual_seed(seed as i64);
    if let Device::Cuda(_) = decoder.device() {
        tch::Cuda::manual_seed_all(seed);
    }
    let config = decoder.config().clone();
    let weights = Weights::random(&config);
    let kind: Kind = decoder.kind();
    Ok(Decoder::from_weights(config, &weights, kind, decoder.device())?)
}
