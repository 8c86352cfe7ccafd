//! Cells of one token and one rank, trained and measured in one run: each weight is read once for all their rows.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use reft_core::{AlignmentSet, GateKind, MapKind, SubspaceInterchange, random_columns};
use reft_models::{Adapter, AdapterStack, Place, io_error, write_json_in_order};
use reft_train::{
    Dataset, Example, Learner, Objective, Outcome, ScheduleKind, Shuffle, Silent, TrainConfig,
    Trainer,
};
use tch::{Kind, Tensor};

use crate::interchange::accuracy::is_right;
use crate::search::subspace::{leading_neurons, mean_directions};
use crate::{
    Accuracy, Alignment, BaseRuns, CellFile, DasAlignment, DasCell, DasOptions, Error,
    InterchangeObjective, InterchangeRuns, MeasuredShare, Pairs, Result, Start, VariableSwap,
};

/// A cell to be searched.
pub(crate) struct PlannedCell {
    pub(crate) cell: DasCell,
    pub(crate) place: Place,
    /// Number of the position.
    pub(crate) position: usize,
    /// The sources' hidden states at its place and token, `[n, d]`.
    pub(crate) sources: Tensor,
    pub(crate) identity: String,
    pub(crate) directory: PathBuf,
}

/// Learning rate of a learned gate, as a multiple of its rotation's: a boundary may have to move across half of the coordinates.
const GATE_RATE: f64 = 10.0;

/// Most tokens of a step. More tokens take more memory and are not faster, since each weight is already read once for many tokens.
const TOKENS_OF_A_STEP: usize = 512;

/// Rows of a run without gradients.
const ROWS_AT_ONCE: usize = 2048;

/// How many cells of a token to train at once.
pub(crate) fn cells_at_once(options: &DasOptions, pairs: &Pairs, position: usize) -> usize {
    let (tokens, _) = &pairs.tokens[position];
    let bases = pairs.bases.iter().zip(tokens);
    let from_there =
        bases.map(|(base, token)| base.row().prompt_length.saturating_sub(*token)).max();
    let tokens = options.batch_size * from_there.unwrap_or(1).max(1);
    (TOKENS_OF_A_STEP / tokens).max(1)
}

/// Trains and measures cells of one rank, in the order of their stages, and writes each to its directory.
///
/// The results are the same as of separate searches, up to rounding.
pub(crate) fn search(
    options: &DasOptions,
    pairs: &Pairs,
    base: &BaseRuns,
    group: &[&PlannedCell],
    stop: &AtomicBool,
) -> Result<Vec<CellFile>> {
    let started = Instant::now();
    let train = options.train_pairs;
    let values = &pairs.values[..train];
    let learned = |planned: &PlannedCell| planned.sources.narrow(0, 0, train as i64);
    let (mut starts, mut randoms) = (Vec::new(), Vec::new());
    for planned in group {
        let (rank, learned) = (planned.cell.rank, learned(planned));
        let (d, device) = (learned.size()[1], learned.device());
        tch::manual_seed(options.seed as i64);
        randoms.push(random_columns(1, d, rank, device));
        starts.push(match (options.alignment, options.start) {
            (DasAlignment::Whole, _) => Tensor::eye(d, (Kind::Float, device)).unsqueeze(0),
            (DasAlignment::Neurons, _) => leading_neurons(&learned, values, rank),
            (_, Start::Means) => mean_directions(&learned, values, rank),
            (_, Start::Random) => random_columns(1, d, rank, device),
        });
    }
    let fixed = |columns: &Tensor| SubspaceInterchange::new(&columns.squeeze_dim(0));
    let mut losses = vec![None; group.len()];
    let mut dimensions: Vec<i64> = group.iter().map(|planned| planned.cell.rank).collect();
    let found: Vec<SubspaceInterchange> = if let Some(method) = options.alignment.learned() {
        let starts = Tensor::cat(&starts, 0);
        let set = AlignmentSet::starting_at(method, MapKind::default(), &starts)?;
        let alignment = Alignment::Independent(set);
        let swap =
            |(i, planned): (usize, &&PlannedCell)| vec![planned.swap(pairs, i, planned.cell.rank)];
        let trials = group.iter().enumerate().map(swap).collect();
        let runs = InterchangeRuns::new(base, &alignment, &pairs.bases, trials)?;
        let objective = InterchangeObjective::new(runs);
        let stack = AdapterStack::one(&alignment);
        let learner = Learner::new(base.model(), &stack, &objective);
        train_on(&learner, pairs.bases[..train].to_vec(), options.training(), stop)?;
        losses = objective.last_losses().into_iter().map(Some).collect();
        objective.progress(1.0); // the lowest temperature of the gates
        dimensions = alignment.set().map(AlignmentSet::swapped).unwrap_or_default();
        tch::no_grad(|| alignment.interchanges(GateKind::Hard))?
    } else {
        starts.iter().map(fixed).collect::<Result<_, _>>()?
    };

    let (mut interchanges, mut trials) = (Vec::new(), Vec::new());
    let mut trials_of = Vec::with_capacity(group.len()); // trial numbers: the found subspace, the start, a random subspace, neurons
    for (i, planned) in group.iter().enumerate() {
        // ranks 0 and d have one subspace each, so they need no controls
        let (rank, swapped, d) = (planned.cell.rank, dimensions[i], planned.sources.size()[1]);
        let has_controls = !planned.cell.untrained_model && (1..d).contains(&swapped);
        let has_start = has_controls && options.alignment == DasAlignment::Das;
        let has_neurons = has_controls && options.alignment != DasAlignment::Neurons;
        let neurons = || fixed(&leading_neurons(&learned(planned), values, swapped));
        let measured = [
            Some(found[i].coordinates(0..rank)?),
            has_start.then(|| fixed(&starts[i])).transpose()?,
            has_controls.then(|| fixed(&randoms[i].narrow(2, 0, swapped))).transpose()?,
            has_neurons.then(neurons).transpose()?,
        ];
        trials_of.push(measured.map(|interchange| {
            let (interchange, trial) = (interchange?, trials.len());
            trials.push(vec![planned.swap(pairs, trial, interchange.columns().size()[1])]);
            interchanges.push(interchange);
            Some(trial)
        }));
    }
    if stop.load(Ordering::Relaxed) {
        return Err(Error::Interrupted);
    }
    let alignment = Alignment::Fixed(interchanges);
    let runs = InterchangeRuns::new(base, &alignment, &pairs.bases, trials)?;
    let held_out = &pairs.bases[train..];
    let given = runs.answers(held_out, ROWS_AT_ONCE, &pairs.answers)?;
    let failed = |trial: usize| -> Vec<(usize, i64)> {
        let wrong = held_out.iter().zip(&given[trial]).enumerate();
        let wrong = wrong.filter(|(_, (base, given))| !is_right(base, given));
        wrong.map(|(i, (_, given))| (train + i, given[0])).collect()
    };
    let measured = |trial: usize| {
        let (total, wrong) = (held_out.len(), failed(trial).len());
        MeasuredShare::from(Accuracy { hits: total - wrong, total })
    };

    let seconds = started.elapsed().as_secs_f64() / group.len() as f64;
    let mut files = Vec::with_capacity(group.len());
    for (i, (planned, found_subspace)) in group.iter().zip(found).enumerate() {
        let failed = trials_of[i][0].map(&failed);
        let [found, start, random_rotation, neurons] =
            trials_of[i].map(|trial| trial.map(measured));
        let file = CellFile {
            identity: planned.identity.clone(),
            found: found.expect("invariant: every cell is measured"),
            dimensions: dimensions[i],
            start,
            random_rotation,
            neurons,
            failed,
            loss: losses[i],
            seconds,
        };
        let directory = &planned.directory;
        std::fs::create_dir_all(directory).map_err(io_error("create", directory))?;
        Alignment::Fixed(vec![found_subspace]).save(directory)?;
        write_json_in_order(&directory.join(CellFile::FILE_NAME), &file)?;
        files.push(file);
    }
    Ok(files)
}

/// Trains to the end, or until `stop` is set.
pub(crate) fn train_on(
    learner: &Learner,
    train: Vec<Example>,
    config: TrainConfig,
    stop: &AtomicBool,
) -> Result<()> {
    let dataset = Dataset { train, validation: Vec::new() };
    match Trainer::new(learner, &dataset, config)?.run(&mut Silent, stop)? {
        Outcome::Finished(_) => Ok(()),
        Outcome::Interrupted(_) => Err(Error::Interrupted),
    }
}

impl DasOptions {
    /// How alignments are trained.
    fn training(&self) -> TrainConfig {
        let gate_rate = if self.alignment == DasAlignment::Das { 1.0 } else { GATE_RATE };
        TrainConfig {
            max_steps: Some(self.steps),
            batch_size: self.batch_size,
            lr: self.lr * gate_rate,
            rotation_lr_factor: 1.0 / gate_rate,
            schedule: ScheduleKind::Linear,
            shuffle: Shuffle::Plain,
            seed: self.seed,
            reuse: false, // the objective has its own cache of base runs
            ..TrainConfig::default()
        }
    }
}

impl PlannedCell {
    /// The cell's swap with one of several alignments.
    fn swap(&self, pairs: &Pairs, alignment: usize, rank: i64) -> VariableSwap {
        VariableSwap {
            place: self.place.clone(),
            alignment,
            coordinates: 0..rank,
            tokens: pairs.tokens[self.position].0.iter().copied().map(Some).collect(),
            sources: self.sources.shallow_clone(),
        }
    }
}
