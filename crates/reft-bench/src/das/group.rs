//! Cells of one token and one rank, trained and measured side by side: their rows share every weight that is read.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use reft_core::{AlignmentSet, GateKind, MapKind, SubspaceInterchange, random_columns};
use reft_models::{Adapter, Place};
use reft_train::das::{Alignment, AlignmentAdapter, SideBySide, VariableSwap};
use reft_train::{
    Dataset, FrozenStore, Model, Outcome, ReuseConfig, ScheduleKind, Shuffle, Silent, TrainConfig,
    Trainer,
};
use tch::{Kind, Tensor};

use crate::das::cell::{CellFile, DasCell, MeasuredShare};
use crate::das::options::{DasAlignment, DasOptions, Start};
use crate::das::pairs::Pairs;
use crate::das::subspace::{leading_neurons, mean_directions};
use crate::error::{Error, Result, io_error};

/// A cell to be searched.
pub(crate) struct Planned {
    pub(crate) cell: DasCell,
    pub(crate) place: Place,
    /// Number of the position.
    pub(crate) position: usize,
    /// The sources' hidden states at its place and token, `[n, d]`.
    pub(crate) sources: Tensor,
    pub(crate) identity: String,
    pub(crate) directory: PathBuf,
}

/// A model, and its base runs.
pub(crate) struct Runs<'a> {
    pub(crate) model: &'a dyn Model,
    pub(crate) frozen: FrozenStore<'static>,
}

/// What is measured of a cell besides what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Found,
    Start,
    Random,
    Neurons,
}

/// Learning rate of a learned gate, as a multiple of that of its rotation: a boundary has half of the coordinates to go.
const GATE_RATE: f64 = 10.0;

/// Tokens of a step: more gain nothing, as weights are then read once for many, and take memory.
const TOKENS_OF_A_STEP: usize = 512;

/// Rows of a run without gradients.
const ROWS_AT_ONCE: usize = 2048;

/// How many cells of a token to train at once.
pub(crate) fn cells_at_once(options: &DasOptions, pairs: &Pairs, position: usize) -> usize {
    let (tokens, _) = &pairs.tokens[position];
    let bases = pairs.bases.iter().zip(tokens);
    let from_there = bases.map(|(base, token)| base.row.prompt_length.saturating_sub(*token)).max();
    let tokens = options.batch_size * from_there.unwrap_or(1).max(1);
    (TOKENS_OF_A_STEP / tokens).max(1)
}

/// Trains and measures cells of one rank, in the order of their stages, and writes each to its directory.
///
/// Each has the numbers that it would have alone, to rounding.
pub(crate) fn search(
    options: &DasOptions,
    pairs: &Pairs,
    runs: &mut Runs,
    group: &[&Planned],
    stop: &AtomicBool,
) -> Result<Vec<CellFile>> {
    let started = Instant::now();
    let train = options.train_pairs;
    let values = &pairs.values[..train];
    let (mut starts, mut randoms) = (Vec::new(), Vec::new());
    for Planned { cell, sources, .. } in group {
        let learned = sources.narrow(0, 0, train as i64);
        let (d, device) = (sources.size()[1], sources.device());
        tch::manual_seed(options.seed as i64);
        randoms.push(random_columns(1, d, cell.rank, device));
        starts.push(match (options.alignment, options.start) {
            (DasAlignment::Whole, _) => Tensor::eye(d, (Kind::Float, device)).unsqueeze(0),
            (DasAlignment::Neurons, _) => leading_neurons(&learned, values, cell.rank),
            (_, Start::Means) => mean_directions(&learned, values, cell.rank),
            (_, Start::Random) => random_columns(1, d, cell.rank, device),
        });
    }
    let fixed = |columns: &Tensor| SubspaceInterchange::new(&columns.squeeze_dim(0));
    let mut found = Vec::with_capacity(group.len());
    let mut losses = vec![None; group.len()];
    let mut dimensions: Vec<i64> = group.iter().map(|planned| planned.cell.rank).collect();
    if let Some(method) = options.alignment.learned() {
        let starts = Tensor::cat(&starts, 0);
        let set = AlignmentSet::starting_at(method, MapKind::default(), &starts)?;
        let swaps =
            group.iter().enumerate().map(|(i, planned)| planned.swap(pairs, i, planned.cell.rank));
        let mut adapter =
            AlignmentAdapter::new(Alignment::Rotated(set), swaps.collect())?.side_by_side();
        let last = train_all(options, pairs, runs, &mut adapter, (group.len(), stop))?;
        losses = last.into_iter().map(Some).collect();
        adapter.begin_step(1.0); // gates as cold as they get
        if let Alignment::Rotated(set) = adapter.alignment() {
            dimensions = set.swapped();
            found = tch::no_grad(|| set.interchanges(GateKind::Hard));
        }
    } else {
        for start in &starts {
            found.push(fixed(start)?);
        }
    }

    let (mut interchanges, mut swaps, mut variants) = (Vec::new(), Vec::new(), Vec::new());
    for (i, planned) in group.iter().enumerate() {
        let (rank, swapped) = (planned.cell.rank, dimensions[i]);
        let learned = planned.sources.narrow(0, 0, train as i64);
        let mut add = |variant, interchange: SubspaceInterchange| {
            let rank = interchange.columns().size()[1];
            swaps.push(planned.swap(pairs, interchanges.len(), rank));
            interchanges.push(interchange);
            variants.push((i, variant));
        };
        add(Variant::Found, found[i].coordinates(0..rank)?);
        // of nothing or everything there is but one subspace
        let d = planned.sources.size()[1];
        if planned.cell.untrained_model || !(1..d).contains(&swapped) {
            continue;
        }
        if options.alignment == DasAlignment::Das {
            add(Variant::Start, fixed(&starts[i])?);
        }
        add(Variant::Random, fixed(&randoms[i].narrow(2, 0, swapped))?);
        if options.alignment != DasAlignment::Neurons {
            add(Variant::Neurons, fixed(&leading_neurons(&learned, values, swapped))?);
        }
    }
    if stop.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    let model = SideBySide::new(runs.model, interchanges.len(), pairs.bases.len());
    let adapter = AlignmentAdapter::new(Alignment::Fixed(interchanges), swaps)?;
    let (tests, frozen) = (&pairs.bases[train..], Some(&mut runs.frozen));
    let measured = model.accuracies(&adapter, tests, ROWS_AT_ONCE, &pairs.answers, frozen)?;

    let seconds = started.elapsed().as_secs_f64() / group.len() as f64;
    let mut files = Vec::with_capacity(group.len());
    for (i, (planned, found)) in group.iter().zip(found).enumerate() {
        let share = |variant| {
            let measured = variants.iter().zip(&measured).find(|(v, _)| **v == (i, variant))?.1;
            Some(MeasuredShare::from(*measured))
        };
        let file = CellFile {
            identity: planned.identity.clone(),
            found: share(Variant::Found).expect("invariant: every cell is measured"),
            dimensions: dimensions[i],
            start: share(Variant::Start),
            random_rotation: share(Variant::Random),
            neurons: share(Variant::Neurons),
            loss: losses[i],
            seconds,
        };
        let directory = &planned.directory;
        std::fs::create_dir_all(directory).map_err(io_error("create", directory))?;
        let alone = planned.swap(pairs, 0, planned.cell.rank);
        AlignmentAdapter::new(Alignment::Fixed(vec![found]), vec![alone])?.save(directory)?;
        file.write(directory)?;
        files.push(file);
    }
    Ok(files)
}

/// Trains the alignments of some cells; the mean loss of each in the last step.
fn train_all(
    options: &DasOptions,
    pairs: &Pairs,
    runs: &mut Runs,
    adapter: &mut AlignmentAdapter,
    (copies, stop): (usize, &AtomicBool),
) -> Result<Vec<f64>> {
    let train = pairs.bases[..options.train_pairs].to_vec();
    let dataset = Dataset { train, validation: Vec::new() };
    let gate_rate = if options.alignment == DasAlignment::Das { 1.0 } else { GATE_RATE };
    let config = TrainConfig {
        max_steps: Some(options.steps),
        batch_size: options.batch_size,
        lr: options.lr * gate_rate,
        rotation_lr_factor: 1.0 / gate_rate,
        schedule: ScheduleKind::Linear,
        shuffle: Shuffle::Plain,
        seed: options.seed,
        validation: 0.0,
        ..TrainConfig::default()
    };
    let model = SideBySide::new(runs.model, copies, pairs.bases.len());
    let frozen = std::mem::replace(&mut runs.frozen, FrozenStore::new(ReuseConfig::default()));
    let mut trainer = Trainer::new(&model, adapter, &dataset, config)?.with_store(frozen);
    let outcome = trainer.run(&mut Silent, stop)?;
    if let Some(frozen) = trainer.into_store() {
        runs.frozen = frozen;
    }
    match outcome {
        Outcome::Finished(_) => Ok(model.last_losses()),
        Outcome::Interrupted(_) => Err(Error::Interrupted),
    }
}

impl Planned {
    /// The cell's swap as one of several side by side.
    fn swap(&self, pairs: &Pairs, copy: usize, rank: i64) -> VariableSwap {
        VariableSwap {
            place: self.place.clone(),
            alignment: copy,
            coordinates: 0..rank,
            first: copy * pairs.bases.len(),
            tokens: pairs.tokens[self.position].0.iter().copied().map(Some).collect(),
            sources: self.sources.shallow_clone(),
        }
    }
}
