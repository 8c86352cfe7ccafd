use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use reft_core::{Error as CoreError, Parameter, autocast};
use reft_models::Dose;
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::run::checkpoint::{Best, Checkpoint, FORMAT_VERSION, RunState};
use crate::run::feed::Feed;
use crate::run::run_directory::RunDirectory;
use crate::run::share::{Processes, Reduce, Share};
use crate::{
    AdamW, Batch, Dataset, Error, Example, FrozenStore, Learner, LossScaler, Metric, NextToken,
    Objective, Outcome, Part, Plan, Progress, Ready, Result, ReuseConfig, Summary, TrainConfig,
    ValidationStats,
};

/// Trains adapters of any method on a frozen model, by any objective.
pub struct Trainer<'a> {
    pub(super) learner: Learner<'a>,
    dataset: &'a Dataset,
    pub(super) config: TrainConfig,
    pub(super) optimizer: AdamW,
    pub(super) scaler: LossScaler,
    /// Steps taken. The place in the data and all random numbers follow from it.
    pub(super) step: usize,
    /// Loss of the last step.
    loss: Option<f64>,
    best: Option<(Best, Rc<BTreeMap<String, Tensor>>)>,
    directory: Option<RunDirectory>,
    /// The frozen model's part of the examples, if it is cached.
    pub(super) frozen: Option<FrozenStore<'a>>,
    /// Whether the backward computes activations again, block by block. Quantised weights need it: otherwise the expanded blocks of all
    /// layers would be held until then.
    pub(super) by_block: bool,
    /// Facts of the caller that the run depends on, beside options, data and model.
    facts: Map<String, Value>,
    pub(super) processes: Processes<'a>,
    pub(super) feed: Feed<'a>,
    /// Examples that are replayed beside the others.
    replay: Option<Feed<'a>>,
    /// The next batch, made ready ahead.
    pub(super) ready: Option<(Batch, Ready)>,
}

impl<'a> Trainer<'a> {
    /// A trainer before its first step, which writes no files.
    ///
    /// # Errors
    /// [`reft_core::Error::OptionValue`] for an invalid option; [`Error::TooFewExamples`] without examples; [`Error::NothingToTrain`];
    /// [`Error::NotFrozen`] if a weight of the model requires a gradient and is no parameter of an adapter; [`Error::NoPlainModel`];
    /// [`reft_models::Error::ContextFull`] if examples do not fit into the model's context. [`Error::Example`] for a subspace that the
    /// adapters do not have.
    pub fn new(learner: &Learner<'a>, dataset: &'a Dataset, config: TrainConfig) -> Result<Self> {
        config.check()?;
        if dataset.train.is_empty() {
            let validation = dataset.validation.len();
            return Err(Error::TooFewExamples { train: 0, validation });
        }
        if dataset.validation.is_empty() {
            let asked = [
                ("patience", config.patience.map(|patience| patience.to_string())),
                ("best", config.best.map(|metric| metric.to_string())),
            ];
            if let Some((option, Some(asked))) =
                asked.into_iter().find(|(_, asked)| asked.is_some())
            {
                let found = format!("{asked} and no examples are held out");
                let expected = "examples to validate with";
                return Err(CoreError::OptionValue { option, found, expected }.into());
            }
        }
        let objective = learner.objective;
        Metric::check_best(config.best, objective.metrics(), objective.name())?;
        check_trainable(learner)?;
        learner.check_lengths(dataset.train.iter().chain(&dataset.validation))?;
        learner.check(&dataset.train)?;
        learner.check(&dataset.validation)?;
        let optimizer = AdamW::new(learner.parameters(), config.weight_decay)
            .with_rotation_lr_factor(config.rotation_lr_factor);
        let scaler = match learner.model.kind() {
            Kind::Half => LossScaler::default(),
            _ => LossScaler::disabled(),
        };
        let feed = Feed::new(&dataset.train, &config);
        let processes = Processes::ALONE;
        let by_block = config.checkpoint_activations || learner.model.is_quantised();
        let trainer = Self {
            learner: learner.clone(),
            dataset,
            config,
            optimizer,
            by_block,
            scaler,
            step: 0,
            loss: None,
            best: None,
            directory: None,
            frozen: None,
            facts: Map::new(),
            processes,
            feed,
            replay: None,
            ready: None,
        };
        Ok(trainer.keeping(ReuseConfig::default()))
    }

    /// Says where the frozen model's part of the examples is cached, if [`TrainConfig::reuse`] has it cached. It changes no number.
    pub fn keeping(mut self, reuse: ReuseConfig) -> Self {
        let store = || self.feed.grouped(&self.learner, FrozenStore::new(reuse));
        self.frozen = self.config.reuse.then(store);
        self
    }

    /// Adds further facts that the run depends on, above all the adapter's options: a run is resumed only with the same.
    /// To be called before [`Self::starting_in`] or [`Self::resuming_in`].
    pub fn with_facts(mut self, facts: Map<String, Value>) -> Self {
        self.facts.extend(facts);
        self
    }

    /// Makes this the trainer of one process among several, each with the same model, data, options and adapters at the start. Examples
    /// held out are shared like training examples; the first process writes files, and all read them. To be called before
    /// [`Self::starting_in`] or [`Self::resuming_in`].
    ///
    /// A process's loss is divided by the counts of all processes, so the sum of their gradients equals the gradient of one process with the
    /// micro-batches of all.
    pub fn sharing(mut self, share: Share, reduction: &'a dyn Reduce) -> Self {
        self.processes = Processes { share, reduction };
        self.feed = self.feed.sharing(share);
        self.replay = self.replay.map(|replay| replay.sharing(share));
        self
    }

    /// Adds to each step of a process a micro-batch of `batch_size` of these examples. Its part is [`Part::Replay`], which the objective must
    /// know ([`KeepingClose`](crate::KeepingClose)). To be called before [`Self::starting_in`] or [`Self::resuming_in`].
    ///
    /// # Errors
    /// As [`Self::new`] for invalid examples; [`Error::TooFewExamples`] if there are none, or `batch_size` is 0.
    pub fn replaying(mut self, examples: &'a [Example], batch_size: usize) -> Result<Self> {
        if examples.is_empty() || batch_size == 0 {
            return Err(Error::TooFewExamples { train: 0, validation: 0 });
        }
        self.learner.check_lengths(examples)?;
        self.learner.check(examples)?;
        let replayed = Dataset { train: examples.to_vec(), validation: Vec::new() };
        self.facts.insert("replay".to_owned(), json!(replayed.digest()));
        self.facts.insert("replay_batch_size".to_owned(), json!(batch_size));
        let replay = Feed::of_replay(examples, batch_size, self.config.seed);
        self.replay = Some(replay.sharing(self.processes.share));
        Ok(self)
    }

    /// Writes `metrics.jsonl`, checkpoints and, at the end, the adapter into a directory, which is created if it does not exist.
    ///
    /// # Errors
    /// [`Error::RunExists`] if a run has been there; errors of the file system.
    pub fn starting_in(mut self, directory: &Path) -> Result<Self> {
        if self.processes.share.is_first() {
            RunDirectory::check_unused(directory)?;
            self.directory = Some(RunDirectory::open(directory, None, self.identity())?);
        }
        Ok(self)
    }

    /// Resumes after the newest checkpoint of a directory, bit for bit as if never interrupted; without one it starts anew.
    ///
    /// A run may be given more epochs or steps than it was begun with. The schedule of the learning rate then follows the longer run, from
    /// the checkpoint on.
    ///
    /// # Errors
    /// [`Error::ResumeMismatch`] if options, data or model differ from that run's, or if it would be shorter; [`Error::Checkpoint`]; errors
    /// of the file system.
    pub fn resuming_in(mut self, directory: &Path) -> Result<Self> {
        let identity = self.identity();
        let mut saved = None;
        self.loss = None;
        if let Some(checkpoint) = Checkpoint::load_newest(directory)? {
            let Checkpoint { state, adapter, optimizer, best } = checkpoint;
            state.check_identity(&identity)?;
            self.check_length(&state)?;
            self.learner.load_state(&adapter)?;
            self.optimizer.load_state(&optimizer)?;
            self.scaler = state.scaler;
            if let Some(frozen) = &mut self.frozen {
                frozen.in_groups = state.rows_side_by_side;
            }
            self.step = state.step;
            self.loss = state.loss;
            saved = Some(state.step);
            self.best = state.best.zip(best);
        }
        if self.processes.share.is_first() {
            self.directory = Some(RunDirectory::open(directory, saved, identity)?);
        }
        Ok(self)
    }

    /// The plan of the run.
    pub fn plan(&self) -> Plan {
        Plan {
            steps: self.total_steps(),
            done: self.step,
            steps_per_epoch: self.steps_per_epoch(),
            examples: self.dataset.train.len(),
            validation_examples: self.dataset.validation.len(),
            trainable: numel(&self.learner.parameters()),
            of_objective: numel(&self.learner.objective.parameters()),
            total: self.learner.model.weights().iter().map(|(_, weight)| weight.numel()).sum(),
            kinds: self.describe_kinds(),
            lr: self.lr(),
        }
    }

    /// Describes the kinds that the model and the trained tensors are computed in.
    pub fn describe_kinds(&self) -> String {
        let name = match self.learner.model.kind() {
            Kind::Float => "f32",
            Kind::BFloat16 => "bf16",
            Kind::Half => "f16",
            Kind::Double => "f64",
            _ => "an unusual kind",
        };
        let scaling = match (self.learner.model.kind(), self.uses_autocast()) {
            (Kind::Half, true) => ", under autocast with a dynamic loss scale",
            (Kind::Half, false) => ", with a dynamic loss scale",
            _ => "",
        };
        let is_half = |kind| matches!(kind, Kind::BFloat16 | Kind::Half);
        let trained = match self.learner.parameters().iter().any(|p| is_half(p.tensor.kind())) {
            true => "the trained tensors' copies that take the steps",
            false => "trained tensors",
        };
        let is_quantised = self.learner.model.is_quantised();
        let held = if is_quantised { ", its weights in blocks of integers" } else { "" };
        format!(
            "frozen model and hidden states in {name}{scaling}{held}; edits, logits and loss, {trained} and AdamW in f32"
        )
    }

    /// Trains to the end, or until `stop` is set: then the current step is finished and a checkpoint written. If one of several processes is
    /// stopped, all stop.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if loss or gradient is no number, [`Error::Overflow`], [`Error::OutOfMemory`] and [`Error::Reduction`] (with a
    /// checkpoint), and errors of the model, an adapter, the objective or the file system. The newest checkpoint stays as it is.
    pub fn run(&mut self, progress: &mut dyn Progress, stop: &AtomicBool) -> Result<Outcome> {
        progress.started(&self.plan());
        if self.step == 0 {
            self.validate(progress)?;
        }
        let mut taken = false;
        while self.step < self.total_steps() {
            let own = [self.ends_early(), stop.load(Ordering::Relaxed)];
            let [is_over, is_stopped] = match self.processes.any(own) {
                Ok(decided) => decided,
                Err(error) => return Err(self.kept_after(error, progress)?),
            };
            if is_over {
                break;
            }
            if is_stopped {
                self.save_checkpoint(progress)?;
                return Ok(Outcome::Interrupted(self.summary(taken)));
            }
            let micro_batches = self.micro_batches(self.step)?;
            let stats = match self.take_step(&micro_batches, progress) {
                Ok(stats) => stats,
                Err(error) => return Err(self.kept_after(error, progress)?),
            };
            self.loss = Some(stats.loss);
            taken = true;
            if let Some(directory) = &mut self.directory {
                directory.write(&stats)?;
            }
            for warning in self.frozen.iter_mut().flat_map(FrozenStore::take_warnings) {
                progress.warned(&warning);
            }
            progress.step(&stats);
            if self.is_due(self.config.eval_every, self.steps_per_epoch())
                && let Err(error) = self.validate(progress)
            {
                return Err(self.kept_after(error, progress)?);
            }
            if self.is_due(self.config.checkpoint_every, self.total_steps()) {
                self.save_checkpoint(progress)?;
            }
        }
        self.save_checkpoint(progress)?;
        if let Some((_, best)) = &self.best {
            self.learner.load_state(best)?;
        }
        if let Some(directory) = &self.directory {
            self.learner.stack.save(&directory.path)?;
        }
        Ok(Outcome::Finished(self.summary(taken)))
    }

    /// This process's batches of a step, counted from 0. The last step of an epoch may have fewer or smaller ones, or none for some of
    /// several processes.
    ///
    /// # Errors
    /// Errors of [`Learner::batch`].
    pub fn micro_batches(&mut self, step: usize) -> Result<Vec<Batch>> {
        let own = self.feed.batches(step, &self.learner);
        let replayed = self.replay.as_mut().map(|replay| replay.batches(step, &self.learner));
        own.chain(replayed.into_iter().flatten()).collect()
    }

    /// Optimizer steps of the whole run.
    pub fn total_steps(&self) -> usize {
        self.feed.total_steps()
    }

    /// Optimizer steps of an epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.feed.steps_per_epoch()
    }

    /// The learning rate of the present step.
    pub(super) fn lr(&self) -> f64 {
        let TrainConfig { schedule, lr, warmup_ratio, .. } = self.config;
        schedule.lr(lr, warmup_ratio, self.step, self.total_steps())
    }

    /// Whether no further step is worth taking: the loss is low enough, or validations find no better adapter any more.
    fn ends_early(&self) -> bool {
        let TrainConfig { stop_at_loss, patience, eval_every, .. } = self.config;
        let is_low = stop_at_loss.zip(self.loss).is_some_and(|(enough, loss)| loss <= enough);
        let every = if eval_every > 0 { eval_every } else { self.steps_per_epoch() };
        let best = self.best.as_ref().map_or(0, |(best, _)| best.step);
        let in_vain = self.step / every - best / every;
        is_low || patience.is_some_and(|patience| in_vain >= patience)
    }

    /// Whether an action is due after the present step: every `every` steps, or every `default` steps if that is 0; and after the last step.
    fn is_due(&self, every: usize, default: usize) -> bool {
        self.step.is_multiple_of(if every > 0 { every } else { default })
            || self.step == self.total_steps()
    }

    /// Evaluates the examples held out, and keeps the adapter if it is the best so far. The start is measured, not kept.
    fn validate(&mut self, progress: &mut dyn Progress) -> Result<()> {
        if self.dataset.validation.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let (batch_size, step) = (self.config.batch_size, self.step);
        let report = autocast(self.uses_autocast(), || {
            let frozen = self.frozen.as_mut();
            self.learner.evaluate_among(
                &self.dataset.validation,
                batch_size,
                frozen,
                self.processes,
            )
        })?;
        let metric = self.config.best.filter(|metric| *metric != Metric::Loss);
        let chosen_by = metric.map(|metric| (metric, report.measured[metric.name()]));
        let own = Best { step, validation_loss: report.loss, chosen_by };
        let is_best = step > 0 && self.best.as_ref().is_none_or(|(best, _)| own.is_better(best));
        if is_best {
            self.best = Some((own, Rc::new(self.learner.state())));
        }
        let is_one = report.measured.len() == 1; // the loss itself
        let stats = ValidationStats {
            step,
            validation_loss: report.loss,
            measured: if is_one { BTreeMap::new() } else { report.measured },
            is_best,
            target_tokens: report.target_tokens,
            seconds: started.elapsed().as_secs_f64(),
        };
        if let Some(directory) = &mut self.directory {
            directory.write(&stats)?;
        }
        progress.validated(&stats);
        Ok(())
    }

    /// Writes a checkpoint if the state of the last step survives an error; returns the error.
    fn kept_after(&mut self, error: Error, progress: &mut dyn Progress) -> Result<Error> {
        let has_left_it =
            matches!(error, Error::OutOfMemory { .. } | Error::Reduction { .. } | Error::Elsewhere);
        if has_left_it {
            self.optimizer.zero_grad();
            if self.step > 0 {
                self.save_checkpoint(progress)?;
            }
        }
        Ok(error)
    }

    fn save_checkpoint(&mut self, progress: &mut dyn Progress) -> Result<()> {
        let Some(directory) = &mut self.directory else { return Ok(()) };
        if directory.saved == Some(self.step) {
            return Ok(());
        }
        let checkpoint = Checkpoint {
            state: RunState {
                format_version: FORMAT_VERSION,
                step: self.step,
                scaler: self.scaler.clone(),
                rows_side_by_side: self.frozen.as_ref().and_then(|frozen| frozen.in_groups),
                loss: self.loss,
                best: self.best.as_ref().map(|(best, _)| *best),
                identity: directory.identity.clone(),
            },
            adapter: self.learner.state(),
            optimizer: self.optimizer.state(),
            best: self.best.as_ref().map(|(_, state)| state.clone()),
        };
        let path = directory.save(&checkpoint)?;
        progress.checkpoint_saved(self.step, &path);
        Ok(())
    }

    /// Everything that a run's results depend on. It must be the same when the run is resumed.
    fn identity(&self) -> Map<String, Value> {
        let mut identity = match serde_json::to_value(&self.config) {
            Ok(Value::Object(fields)) => fields,
            other => panic!("invariant: options are an object of texts and numbers, got {other:?}"),
        };
        for changes_no_number in ["checkpoint_every", "checkpoint_activations", "reuse", "patience"]
        {
            identity.remove(changes_no_number); // but for rounding
        }
        let model = self.learner.model;
        identity.insert("model".into(), json!(model.description().to_string()));
        identity.insert("kind".into(), json!(format!("{:?}", model.kind())));
        if model.is_quantised() {
            // the size tells eight bits a number from four, and some matrices from all
            let bytes = model.weight_bytes();
            identity.insert("weights".into(), json!(format!("quantised, {bytes} bytes")));
        }
        if self.processes.share.world() > 1 {
            identity.insert("world".into(), json!(self.processes.share.world()));
        }
        identity.insert("method".into(), json!(self.learner.stack.method()));
        let objective = self.learner.objective.name();
        if objective != NextToken.name() {
            identity.insert("objective".into(), json!(objective));
        }
        identity.extend(self.learner.objective.options());
        identity.insert("data".into(), json!(self.dataset.digest()));
        identity.extend(self.facts.clone());
        identity
    }

    /// Checks that a run is not made shorter than it was begun.
    fn check_length(&self, state: &RunState) -> Result<()> {
        let (epochs, max_steps) = state.length();
        let begun = self.feed.steps_of(epochs, max_steps);
        if self.total_steps() < begun {
            return Err(Error::ResumeMismatch {
                field: "number of steps".to_owned(),
                saved: begun.to_string(),
                now: format!("{}; a run can be made longer", self.total_steps()),
            });
        }
        Ok(())
    }

    fn summary(&self, taken: bool) -> Summary {
        let loss = self.loss.filter(|_| taken);
        Summary { steps: self.step, loss, best: self.best.as_ref().map(|(best, _)| *best) }
    }

    /// tch's autocast is f16 on CUDA.
    pub(super) fn uses_autocast(&self) -> bool {
        self.learner.model.kind() == Kind::Half && self.learner.model.device().is_cuda()
    }
}

/// The number of trainable parameters.
fn numel(parameters: &[Parameter]) -> usize {
    parameters.iter().map(|parameter| parameter.tensor.numel()).sum()
}

/// Checks that there are parameters, and that no other weight requires a gradient.
fn check_trainable(learner: &Learner) -> Result<()> {
    let parameters = learner.parameters();
    let method = learner.stack.method();
    if parameters.iter().all(|parameter| parameter.tensor.numel() == 0) {
        return Err(Error::NothingToTrain { method });
    }
    let is_parameter =
        |weight: &Tensor| parameters.iter().any(|p| p.tensor.data_ptr() == weight.data_ptr());
    for (name, weight) in learner.model.weights() {
        let Some(weight) = weight.tensor().filter(|weight| weight.requires_grad()) else {
            continue;
        };
        if !is_parameter(weight) {
            return Err(Error::NotFrozen { name });
        }
        let compares = learner.objective.doses().iter().any(|dose| *dose != Dose::WHOLE)
            || [Part::Task, Part::Replay]
                .iter()
                .any(|p| !learner.objective.references(*p).is_empty());
        if compares {
            return Err(Error::NoPlainModel { objective: learner.objective.name(), method });
        }
    }
    Ok(())
}
