use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use reft_models::Adapter;
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor, autocast};

use crate::adamw::AdamW;
use crate::batches::Batch;
use crate::checkpoint::{Best, Checkpoint, FORMAT_VERSION, RunState};
use crate::clip::clip_grad_norm;
use crate::computation::{Backward, Computation};
use crate::dataset::Dataset;
use crate::evaluate::evaluate;
use crate::feed::Feed;
use crate::loss_scaler::{Grads, LossScaler};
use crate::metrics::{StepStats, ValidationStats};
use crate::model::Model;
use crate::out_of_memory;
use crate::outcome::{Outcome, Step, Summary};
use crate::prepared::Prepared;
use crate::progress::{Plan, Progress};
use crate::reuse::{FrozenStore, ReuseConfig};
use crate::run_directory::RunDirectory;
use crate::schedule::Schedule;
use crate::seed::seed_of;
use crate::share::{Alone, Processes, Reduce, Share};
use crate::train_config::TrainConfig;
use crate::{Error, Result};

/// Trains an adapter of any method on a frozen model.
pub struct Trainer<'a> {
    model: &'a dyn Model,
    adapter: &'a mut dyn Adapter,
    dataset: &'a Dataset,
    config: TrainConfig,
    optimizer: AdamW,
    schedule: Schedule,
    scaler: LossScaler,
    /// Steps taken. The place in the data and all random numbers follow from it.
    step: usize,
    best: Option<(Best, State)>,
    directory: Option<RunDirectory>,
    /// The frozen model's part of the examples, if it is kept.
    frozen: Option<FrozenStore<'a>>,
    /// What the caller says the run depends on, beside options, data and model.
    facts: Map<String, Value>,
    stop_at_loss: Option<f64>,
    is_quantised: bool,
    processes: Processes<'a>,
    feed: Feed<'a>,
    /// The batch that comes next, on its way to the device.
    prepared: Option<(Batch, Prepared)>,
}

/// An adapter's or an optimizer's tensors by name.
type State = std::collections::BTreeMap<String, Tensor>;

impl<'a> Trainer<'a> {
    /// A trainer before its first step, which writes no files.
    ///
    /// # Errors
    /// [`Error::Config`] for an option that cannot be; [`Error::TooFewExamples`] without examples; [`Error::NothingToTrain`];
    /// [`Error::NotFrozen`] if a weight of the model wants a gradient and is no parameter of the adapter.
    pub fn new(
        model: &'a dyn Model,
        adapter: &'a mut dyn Adapter,
        dataset: &'a Dataset,
        config: TrainConfig,
    ) -> Result<Self> {
        config.check()?;
        if dataset.train.is_empty() {
            let validation = dataset.validation.len();
            return Err(Error::TooFewExamples { train: 0, validation });
        }
        check_trainable(model, adapter)?;
        let optimizer = fresh_optimizer(adapter, &config);
        let scaler = match model.kind() {
            Kind::Half => LossScaler::new(),
            _ => LossScaler::disabled(),
        };
        let feed = Feed::new(&dataset.train, &config);
        let store = || feed.grouped(FrozenStore::new(ReuseConfig::default()));
        let frozen = config.reuse.then(store);
        let processes = Processes { share: Share::WHOLE, reduction: &Alone };
        let TrainConfig { schedule, lr, warmup_ratio, .. } = config;
        let schedule = Schedule::new(schedule, lr, warmup_ratio, feed.total_steps());
        Ok(Self {
            model,
            adapter,
            dataset,
            config,
            optimizer,
            schedule,
            scaler,
            step: 0,
            best: None,
            directory: None,
            frozen,
            facts: Map::new(),
            stop_at_loss: None,
            is_quantised: model.weights().iter().any(|(_, weight)| weight.tensor().is_none()),
            processes,
            feed,
            prepared: None,
        })
    }

    /// Says where the frozen model's part of the examples is kept, if [`TrainConfig::reuse`] has it kept. It changes no number.
    pub fn keeping(mut self, reuse: ReuseConfig) -> Self {
        self.frozen = self.config.reuse.then(|| self.feed.grouped(FrozenStore::new(reuse)));
        self
    }

    /// Takes a store that earlier runs on the same model have filled, if [`TrainConfig::reuse`] has it; [`Self::into_store`] gives it back.
    pub fn with_store(mut self, store: FrozenStore<'a>) -> Self {
        self.frozen = self.config.reuse.then_some(store);
        self
    }

    /// Ends the trainer and gives back what it has kept of the frozen model's work.
    pub fn into_store(self) -> Option<FrozenStore<'static>> {
        self.frozen.map(FrozenStore::ungrouped)
    }

    /// Adds what else the numbers of the run depend on, above all the adapter's options: a run is resumed only with the same.
    /// To be called before [`Self::starting_in`] or [`Self::resuming_in`].
    pub fn with_facts(mut self, facts: Map<String, Value>) -> Self {
        self.facts.extend(facts);
        self
    }

    /// Makes the trainer that of one process among several, each with the same model, data, options and adapter at the start. The examples
    /// held out are evaluated by each of them; files are written by the first only, and read by all. To be called before
    /// [`Self::starting_in`] or [`Self::resuming_in`].
    ///
    /// A process's loss is divided by the number of target tokens of all processes, so the sum of their gradients is that of one process
    /// with the micro-batches of all.
    pub fn sharing(mut self, share: Share, reduction: &'a dyn Reduce) -> Self {
        self.processes = Processes { share, reduction };
        self.feed = self.feed.sharing(share);
        let TrainConfig { schedule, lr, warmup_ratio, .. } = self.config;
        self.schedule = Schedule::new(schedule, lr, warmup_ratio, self.total_steps());
        self
    }

    /// Ends training early, after the first step whose loss is no more than this.
    pub fn stopping_at(mut self, loss: f64) -> Self {
        self.stop_at_loss = Some(loss);
        self
    }

    /// Writes `metrics.jsonl`, checkpoints and, at the end, the adapter into a directory, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::RunExists`] if a run has been there; [`Error::Io`].
    pub fn starting_in(mut self, directory: &Path) -> Result<Self> {
        if self.processes.share.is_first() {
            self.directory = Some(RunDirectory::create(directory, self.identity())?);
        }
        Ok(self)
    }

    /// Goes on after the newest checkpoint of a directory, bit for bit as if nothing had been; without one it begins anew.
    ///
    /// # Errors
    /// [`Error::ResumeMismatch`] if options, data or model are not those of that run; [`Error::Checkpoint`]; [`Error::Io`].
    pub fn resuming_in(mut self, directory: &Path) -> Result<Self> {
        let identity = self.identity();
        let mut saved = None;
        if let Some(checkpoint) = Checkpoint::load_newest(directory)? {
            let Checkpoint { state, adapter, optimizer, best } = checkpoint;
            state.check_identity(&identity)?;
            self.adapter.load_state(&adapter)?;
            self.optimizer = fresh_optimizer(self.adapter, &self.config);
            self.optimizer.load_state(&optimizer)?;
            self.scaler = state.scaler;
            if let Some(frozen) = &mut self.frozen {
                frozen.set_side_by_side(state.rows_side_by_side);
            }
            self.step = state.step;
            saved = Some(state.step);
            self.best = state.best.zip(best);
        }
        if self.processes.share.is_first() {
            self.directory = Some(RunDirectory::reopen(directory, saved, identity)?);
        }
        Ok(self)
    }

    /// What the run is going to do.
    pub fn plan(&self) -> Plan {
        Plan {
            steps: self.total_steps(),
            done: self.step,
            steps_per_epoch: self.steps_per_epoch(),
            examples: self.dataset.train.len(),
            validation_examples: self.dataset.validation.len(),
            trainable: self.adapter.parameters().iter().map(|p| p.tensor.numel()).sum(),
            total: self.model.weights().iter().map(|(_, weight)| weight.numel()).sum(),
            kinds: self.describe_kinds(),
        }
    }

    /// Which kind computes what.
    pub fn describe_kinds(&self) -> String {
        let name = match self.model.kind() {
            Kind::Float => "f32",
            Kind::BFloat16 => "bf16",
            Kind::Half => "f16",
            Kind::Double => "f64",
            _ => "an unusual kind",
        };
        let scaling = match (self.model.kind(), self.uses_autocast()) {
            (Kind::Half, true) => ", under autocast with a dynamic loss scale",
            (Kind::Half, false) => ", with a dynamic loss scale",
            _ => "",
        };
        let held = if self.is_quantised { ", its weights in blocks of integers" } else { "" };
        format!(
            "frozen model and hidden states in {name}{scaling}{held}; edits, logits and loss, trained tensors and AdamW in f32"
        )
    }

    /// Trains to the end, or until `stop` is set: then the step that is under way is finished and a checkpoint written.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if loss or gradient is no number, [`Error::Overflow`], [`Error::OutOfMemory`] (with a checkpoint), what the model or the adapter refuses, and
    /// [`Error::Io`]. The newest checkpoint stays as it is.
    pub fn run(&mut self, progress: &mut dyn Progress, stop: &AtomicBool) -> Result<Outcome> {
        progress.started(&self.plan());
        if self.step == 0 {
            self.validate(progress)?;
        }
        let mut loss = None;
        while self.step < self.total_steps() {
            if stop.load(Ordering::Relaxed) {
                self.save_checkpoint(progress)?;
                return Ok(Outcome::Interrupted(self.summary(loss)));
            }
            let micro_batches = self.micro_batches(self.step)?;
            let stats = match self.take_step(&micro_batches, progress) {
                Err(error @ Error::OutOfMemory { .. }) => {
                    self.optimizer.zero_grad();
                    if self.step > 0 {
                        self.save_checkpoint(progress)?;
                    }
                    return Err(error);
                }
                stats => stats?,
            };
            loss = Some(stats.loss);
            if let Some(directory) = &mut self.directory {
                directory.metrics.write(&stats)?;
            }
            for warning in self.frozen.iter_mut().flat_map(FrozenStore::take_warnings) {
                progress.warned(&warning);
            }
            progress.step(&stats);
            if self.is_due(self.config.eval_every, self.steps_per_epoch()) {
                self.validate(progress)?;
            }
            if self.is_due(self.config.checkpoint_every, self.total_steps()) {
                self.save_checkpoint(progress)?;
            }
            if self.stop_at_loss.is_some_and(|enough| stats.loss <= enough) {
                break;
            }
        }
        self.save_checkpoint(progress)?;
        if let Some((_, best)) = &self.best {
            self.adapter.load_state(best)?;
        }
        if let Some(directory) = &self.directory {
            self.adapter.save(&directory.path)?;
        }
        Ok(Outcome::Finished(self.summary(loss)))
    }

    /// One optimizer step. The loss is the mean over the target tokens of all its micro-batches, so cutting it into other
    /// micro-batches, or sharing them out among processes, changes nothing but memory.
    ///
    /// # Errors
    /// [`Error::NotFinite`], with nothing updated; [`Error::Reduction`]; what the model or the adapter refuses.
    pub fn step(&mut self, micro_batches: &[Batch]) -> Result<Step> {
        let started = Instant::now();
        let n_targets: i64 = micro_batches.iter().map(Batch::n_targets).sum();
        let n_tokens: usize = micro_batches.iter().map(Batch::n_tokens).sum();
        let counts = self.processes.sums(&[n_targets as f64, n_tokens as f64])?;
        let (n_targets, n_tokens) = (counts[0], counts[1]);
        let mut losses = Vec::with_capacity(micro_batches.len());
        self.optimizer.zero_grad();
        self.adapter.begin_step(self.step as f64 / self.total_steps().max(1) as f64);
        for (i, batch) in micro_batches.iter().enumerate() {
            let place = self.processes.share.place_in_step(i);
            let seed = seed_of(&[self.config.seed, self.step as u64, place as u64]);
            let factor = self.scaler.scale() / n_targets;
            let loss_sum = self.with_memory(|run| {
                autocast(run.uses_autocast(), || run.backward(batch, Backward { factor, seed }))
            })?;
            losses.push(loss_sum / n_targets);
            self.look_ahead(micro_batches.get(i + 1));
        }
        // a part of the loss that is no sum over examples, and counts once
        if let Some(penalty) = self.adapter.penalty().filter(|_| self.processes.share.is_first()) {
            (penalty * self.scaler.scale()).backward();
        }
        let (loss, grads) = self.reduced(&losses, micro_batches)?;
        if self.scaler.unscale(&grads) == Grads::Overflow {
            self.scaler.back_off();
            return Ok(Step::Overflowed);
        }
        let (max_norm, parts) = (self.config.max_grad_norm, self.adapter.parts());
        let grad_norm = clip_grad_norm(&grads, max_norm, parts).double_value(&[]); // sync
        if !grad_norm.is_finite() {
            let ids = micro_batches.iter().flat_map(|batch| batch.ids.clone()).collect();
            let (step, what) = (self.step + 1, "gradient norm");
            return Err(Error::NotFinite { what, value: grad_norm, step, ids });
        }
        let lr = self.schedule.lr(self.step);
        self.optimizer.step(lr);
        self.scaler.step_taken();
        self.step += 1;
        Ok(Step::Taken(StepStats {
            step: self.step,
            epoch: self.step as f64 / self.steps_per_epoch() as f64,
            loss,
            lr,
            grad_norm,
            tokens: n_tokens as usize,
            target_tokens: n_targets as i64,
            seconds: started.elapsed().as_secs_f64(),
        }))
    }

    /// Computes something that changes nothing but gradients, and says so if memory runs out.
    fn with_memory<T>(&mut self, compute: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let step = self.step + 1;
        let out = |reason| Error::OutOfMemory { step, reason };
        match out_of_memory::with_memory(|| compute(self)).map_err(out)? {
            Err(error) => Err(out_of_memory::reason(&error).map_or(error, out)),
            done => done,
        }
    }

    /// Adds the gradient of a batch's loss; returns the loss, `Σ −log p(target)` in f32.
    fn backward(&mut self, batch: &Batch, backward: Backward) -> Result<Tensor> {
        let adapters: &[&dyn Adapter] = &[&*self.adapter];
        let prepared = self.prepared.take().filter(|(of, _)| of == batch).map(|(_, made)| made);
        let frozen = self.frozen.as_mut();
        let computation = Computation { prepared, ..Computation::new(adapters, batch, frozen) };
        // blocks that are expanded for one forward of all layers would be held until its backward
        if self.config.checkpoint_activations || self.is_quantised {
            return self.model.checkpointed_backward(computation, backward);
        }
        self.model.backward(computation, backward)
    }

    /// Makes ready what comes after the present batch, the next of this step or the first of the step to come, while the device is at work.
    /// What fails here fails again when it is wanted, and is told then.
    fn look_ahead(&mut self, next: Option<&Batch>) {
        let virtual_tokens = self.adapter.virtual_tokens();
        let of_next_step = || self.feed.first_of(self.step + 1, virtual_tokens);
        let Some(batch) = next.cloned().or_else(of_next_step) else { return };
        let prepared = self
            .with_memory(|run| run.model.prepare(&[&*run.adapter], &batch, run.frozen.as_mut()));
        self.prepared = prepared.ok().flatten().map(|prepared| (batch, prepared));
    }

    /// This process's batches of a step, counted from 0. The last step of an epoch may have fewer or smaller ones, or none for some of
    /// several processes.
    ///
    /// # Errors
    /// What [`Batch::collate`] refuses.
    pub fn micro_batches(&mut self, step: usize) -> Result<Vec<Batch>> {
        self.feed.step(step, self.adapter.virtual_tokens())
    }

    /// Optimizer steps of the whole run.
    pub fn total_steps(&self) -> usize {
        self.feed.total_steps()
    }

    /// Optimizer steps of an epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.feed.steps_per_epoch()
    }

    /// Repeats a step that overflows, at lower and lower loss scales.
    fn take_step(
        &mut self,
        micro_batches: &[Batch],
        progress: &mut dyn Progress,
    ) -> Result<StepStats> {
        loop {
            if let Step::Taken(stats) = self.step(micro_batches)? {
                return Ok(stats);
            }
            let (step, scale) = (self.step + 1, self.scaler.scale());
            if scale < 1.0 {
                let ids = micro_batches.iter().flat_map(|batch| batch.ids.clone()).collect();
                return Err(Error::Overflow { step, scale, ids });
            }
            progress.overflowed(step, scale);
        }
    }

    /// The loss of a step, from its micro-batches' shares of it, and the gradients: summed over all processes, and not yet used.
    fn reduced(
        &mut self,
        shares: &[Tensor],
        micro_batches: &[Batch],
    ) -> Result<(f64, Vec<Tensor>)> {
        let shares = match shares {
            [] => Vec::new(),
            _ => Vec::<f64>::try_from(Tensor::stack(shares, 0).to_kind(Kind::Double))?, // sync
        };
        let mut own = vec![shares.iter().sum()];
        own.extend(self.optimizer.with_grad().map(f64::from));
        let sums = self.processes.sums(&own)?;
        let loss = sums[0];
        if !loss.is_finite() {
            let mut own = shares.into_iter().zip(micro_batches);
            let found = own.find(|(share, _)| !share.is_finite());
            let elsewhere = || (loss, vec!["of another process".to_owned()]);
            let (value, ids) = found.map_or_else(elsewhere, |(s, batch)| (s, batch.ids.clone()));
            return Err(Error::NotFinite { what: "loss", value, step: self.step + 1, ids });
        }
        for leaf in (0..sums.len() - 1).filter(|leaf| sums[leaf + 1] > 0.0) {
            self.optimizer.give_grad(leaf); // where another process has one
        }
        let mut grads = self.optimizer.grads();
        self.processes.reduction.sum(&mut grads)?;
        Ok((loss, grads))
    }

    /// Whether something is to happen after the present step: every `every` steps, or if that is 0 every `default` steps; and
    /// after the last step.
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
            evaluate(
                self.model,
                &[&*self.adapter],
                &self.dataset.validation,
                batch_size,
                self.frozen.as_mut(),
            )
        })?;
        let lowest = self.best.as_ref().map_or(f64::INFINITY, |(best, _)| best.validation_loss);
        if step > 0 && report.loss < lowest {
            let state = self.adapter.state();
            let state = state.into_iter().map(|(name, tensor)| (name, tensor.detach().copy()));
            self.best = Some((Best { step, validation_loss: report.loss }, state.collect()));
        }
        let stats = ValidationStats {
            step,
            validation_loss: report.loss,
            target_tokens: report.target_tokens,
            seconds: started.elapsed().as_secs_f64(),
        };
        if let Some(directory) = &mut self.directory {
            directory.metrics.write(&stats)?;
        }
        progress.validated(&stats);
        Ok(())
    }

    fn save_checkpoint(&mut self, progress: &mut dyn Progress) -> Result<()> {
        let Some(directory) = &mut self.directory else { return Ok(()) };
        if directory.saved == Some(self.step) {
            return Ok(());
        }
        let copy = |state: &State| {
            state.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
        };
        let checkpoint = Checkpoint {
            state: RunState {
                format_version: FORMAT_VERSION,
                step: self.step,
                scaler: self.scaler.clone(),
                rows_side_by_side: self.frozen.as_ref().and_then(FrozenStore::side_by_side),
                best: self.best.as_ref().map(|(best, _)| *best),
                identity: directory.identity.clone(),
            },
            adapter: self.adapter.state(),
            optimizer: self.optimizer.state(),
            best: self.best.as_ref().map(|(_, state)| copy(state)),
        };
        let path = directory.save(&checkpoint)?;
        progress.checkpoint_saved(self.step, &path);
        Ok(())
    }

    /// Everything that the numbers of a run depend on, and that must be the same when it is resumed.
    fn identity(&self) -> Map<String, Value> {
        let mut identity = match serde_json::to_value(&self.config) {
            Ok(Value::Object(fields)) => fields,
            other => panic!("invariant: options are an object of texts and numbers, got {other:?}"),
        };
        for changes_no_number in ["checkpoint_every", "checkpoint_activations", "reuse"] {
            identity.remove(changes_no_number); // but for rounding
        }
        identity.insert("model".into(), json!(self.model.describe()));
        identity.insert("kind".into(), json!(format!("{:?}", self.model.kind())));
        if self.is_quantised {
            // eight bits a number or four, some of the matrices or all
            let bytes: usize = self.model.weights().iter().map(|(_, weight)| weight.bytes()).sum();
            identity.insert("weights".into(), json!(format!("quantised, {bytes} bytes")));
        }
        if self.processes.share.world() > 1 {
            identity.insert("world".into(), json!(self.processes.share.world()));
        }
        identity.insert("method".into(), json!(self.adapter.method()));
        identity.insert("data".into(), json!(self.dataset.digest()));
        identity.extend(self.facts.clone());
        identity
    }

    fn summary(&self, loss: Option<f64>) -> Summary {
        Summary { steps: self.step, loss, best: self.best.as_ref().map(|(best, _)| *best) }
    }

    /// tch's autocast is f16 on CUDA.
    fn uses_autocast(&self) -> bool {
        self.model.kind() == Kind::Half && self.model.device().is_cuda()
    }
}

fn fresh_optimizer(adapter: &dyn Adapter, config: &TrainConfig) -> AdamW {
    AdamW::new(adapter.parameters(), config.weight_decay)
        .with_rotation_lr_factor(config.rotation_lr_factor)
}

/// Checks that the adapter's parameters, and nothing else, want gradients.
fn check_trainable(model: &dyn Model, adapter: &dyn Adapter) -> Result<()> {
    let parameters = adapter.parameters();
    if parameters.iter().all(|parameter| parameter.tensor.numel() == 0) {
        return Err(Error::NothingToTrain { method: adapter.method().to_owned() });
    }
    let is_parameter =
        |weight: &Tensor| parameters.iter().any(|p| p.tensor.data_ptr() == weight.data_ptr());
    for (name, weight) in model.weights() {
        if weight.tensor().is_some_and(|w| w.requires_grad() && !is_parameter(w)) {
            return Err(Error::NotFrozen { name });
        }
    }
    Ok(())
}
