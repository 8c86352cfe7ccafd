use std::time::Instant;

use reft_core::autocast;
use tch::{Kind, Tensor};

use crate::forward::learner::add;
use crate::optimizer::clip::clip_grad_norm;
use crate::run::out_of_memory;
use crate::{
    Batch, Error, Grads, Progress, Result, Step, StepStats, Trainer, resident_memory, seed_of,
};

impl Trainer<'_> {
    /// One optimizer step. The loss is normalised over all micro-batches of the step. So another division into micro-batches, or a division among
    /// processes, changes only the memory.
    ///
    /// # Errors
    /// [`Error::NotFinite`], with nothing updated; [`Error::Reduction`]; errors of the model, an adapter or the objective.
    pub fn step(&mut self, micro_batches: &[Batch]) -> Result<Step> {
        let started = Instant::now();
        let objective = self.learner.objective;
        let (counts, [tokens, target_tokens]) = self.counts(micro_batches)?;
        self.optimizer.zero_grad();
        objective.progress(self.step as f64 / self.total_steps().max(1) as f64);
        let terms = self.backwards(micro_batches, &counts);
        let (terms, grads) = self.reduced(terms, micro_batches)?;
        if self.scaler.unscale(&grads) == Grads::Overflow {
            self.scaler.back_off();
            return Ok(Step::Overflowed);
        }
        objective.before_step();
        let (max_norm, groups) = (self.config.max_grad_norm, self.optimizer.clip_groups());
        let grad_norm = clip_grad_norm(&grads, max_norm, groups).double_value(&[]); // sync
        if !grad_norm.is_finite() {
            let ids = micro_batches.iter().flat_map(|batch| batch.ids.clone()).collect();
            let (step, what) = (self.step + 1, "gradient norm");
            return Err(Error::NotFinite { what, value: grad_norm, step, ids });
        }
        let lr = self.lr();
        self.optimizer.step(lr);
        self.scaler.step_taken();
        self.step += 1;
        let named = objective.terms().iter().map(|term| term.name.to_owned()).zip(terms.clone());
        Ok(Step::Taken(StepStats {
            step: self.step,
            epoch: self.step as f64 / self.steps_per_epoch() as f64,
            loss: self.learner.loss_of(&terms),
            terms: named.filter(|_| terms.len() > 1).collect(),
            lr,
            grad_norm,
            tokens: tokens as usize,
            target_tokens: target_tokens as i64,
            seconds: started.elapsed().as_secs_f64(),
            memory: resident_memory(),
        }))
    }

    /// The size of a step, over all processes: the count of each term, the number of tokens, and of target tokens.
    fn counts(&self, micro_batches: &[Batch]) -> Result<(Vec<f64>, [f64; 2])> {
        let objective = self.learner.objective;
        let mut own = vec![0.0; objective.terms().len() + 2];
        for batch in micro_batches {
            let mut counts = objective.counts(batch);
            counts.extend([batch.n_tokens() as f64, batch.n_targets() as f64]);
            add(&mut own, &counts);
        }
        let mut counts = self.processes.sums(&own)?;
        let tokens = counts.split_off(counts.len() - 2);
        Ok((counts, [tokens[0], tokens[1]]))
    }

    /// Runs a computation that changes nothing but gradients; an error if memory runs out.
    fn with_memory<T>(&mut self, compute: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let step = self.step + 1;
        let out = |reason| Error::OutOfMemory { step, reason };
        match out_of_memory::with_memory(|| compute(self)).map_err(out)? {
            Err(error) => Err(out_of_memory::reason(&error).map_or(error, out)),
            done => done,
        }
    }

    /// Adds the gradients of all micro-batches, each term divided by its count; returns each micro-batch's part of each term's mean.
    fn backwards(&mut self, micro_batches: &[Batch], counts: &[f64]) -> Result<Vec<f64>> {
        let divisors = self.learner.divisors(counts);
        let factors = self.learner.factors(counts).into_iter();
        let factors: Vec<f64> = factors.map(|factor| factor * self.scaler.scale()).collect();
        let mut terms = Vec::new();
        for (i, batch) in micro_batches.iter().enumerate() {
            let place = self.processes.share.place_in_step(i);
            let seed = seed_of(&[self.config.seed, self.step as u64, place as u64]);
            let sums = self.with_memory(|run| {
                autocast(run.uses_autocast(), || run.backward(batch, &factors, seed))
            })?;
            terms.extend(sums.into_iter().zip(&divisors).map(|(sum, n)| sum / *n));
            self.look_ahead(micro_batches.get(i + 1));
        }
        // a part of the loss that is no sum over examples, and counts once
        let penalty = self.learner.objective.penalty();
        if let Some(penalty) = penalty.filter(|_| self.processes.share.is_first()) {
            (penalty * self.scaler.scale()).backward();
        }
        match terms.as_slice() {
            [] => Ok(Vec::new()),
            terms => Ok(Tensor::stack(terms, 0).to_kind(Kind::Double).try_into()?), // sync
        }
    }

    /// Adds the gradient of `Σ factor · sum` over a batch's terms; returns the sums.
    fn backward(&mut self, batch: &Batch, factors: &[f64], seed: u64) -> Result<Vec<Tensor>> {
        let ready = self.ready.take().filter(|(of, _)| of == batch).map(|(_, ready)| ready);
        let ready = match ready {
            Some(ready) => ready,
            None => self.learner.ready(batch, self.frozen.as_mut())?,
        };
        self.learner.backward(batch, &ready, factors, seed, self.by_block)
    }

    /// Makes the next batch ready, of this step or the next one, while the device computes. Errors are ignored here: the real request reports
    /// them.
    fn look_ahead(&mut self, next: Option<&Batch>) {
        let is_last = self.step + 1 >= self.total_steps();
        let batch = match next {
            Some(batch) => Some(batch.clone()),
            None if is_last => None,
            None => self.feed.batches(self.step + 1, &self.learner).next().and_then(Result::ok),
        };
        let frozen = self.frozen.as_ref();
        let Some(batch) = batch.filter(|batch| self.learner.is_cached(batch, frozen)) else {
            return;
        };
        let ready = self.with_memory(|run| run.learner.ready(&batch, run.frozen.as_mut()));
        self.ready = ready.ok().map(|ready| (batch, ready));
    }

    /// The means of a step's terms and the gradients: summed over all processes, and not yet used.
    fn reduced(
        &mut self,
        terms: Result<Vec<f64>>,
        micro_batches: &[Batch],
    ) -> Result<(Vec<f64>, Vec<Tensor>)> {
        let n = self.learner.objective.terms().len();
        let with_grad: Vec<f64> = self.optimizer.with_grad().map(f64::from).collect();
        let of_each = terms.as_ref().map_or(Vec::new(), Vec::clone);
        let own = terms.map(|terms| {
            let of_term = |k| terms.iter().skip(k).step_by(n).sum::<f64>();
            (0..n).map(of_term).chain(with_grad.iter().copied()).collect()
        });
        let mut sums = self.processes.sums_of(own, n + with_grad.len(), self.step + 1)?;
        let with_grad = sums.split_off(n);
        if let Some(&sum) = sums.iter().find(|sum| !sum.is_finite()) {
            let mut own = of_each.chunks(n).zip(micro_batches);
            let found = own.find_map(|(terms, batch)| {
                Some((*terms.iter().find(|term| !term.is_finite())?, batch.ids.clone()))
            });
            let elsewhere = || (sum, vec!["of another process".to_owned()]);
            let (value, ids) = found.unwrap_or_else(elsewhere);
            return Err(Error::NotFinite { what: "loss", value, step: self.step + 1, ids });
        }
        for leaf in (0..with_grad.len()).filter(|leaf| with_grad[*leaf] > 0.0) {
            self.optimizer.give_grad(leaf); // another process has a gradient for it
        }
        let mut grads = self.optimizer.grads();
        self.processes.reduction.sum(&mut grads)?;
        Ok((sums, grads))
    }

    /// Repeats a step that overflows, at lower and lower loss scales.
    pub(super) fn take_step(
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NextToken;
    use crate::Shuffle;
    use crate::data::dataset::Dataset;
    use crate::data::example::{Example, IGNORE_INDEX};
    use crate::forward::learner::Learner;
    use crate::reuse::frozen_store::ReuseConfig;
    use crate::run::train_config::TrainConfig;
    use reft_core::{InterventionConfig, Method};
    use reft_methods::{ReftAdapter, ReftConfig};
    use reft_models::{AdapterStack, BaseModel, Decoder, Model, Row};
    use std::sync::{Mutex, PoisonError};
    use tch::Device;

    type TestResult<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

    /// libtorch has one random number generator for all threads.
    static ALONE: Mutex<()> = Mutex::new(());

    fn config() -> TrainConfig {
        TrainConfig {
            max_steps: Some(11),
            batch_size: 3,
            lr: 4e-3,
            shuffle: Shuffle::Plain,
            seed: 5,
            ..TrainConfig::default()
        }
    }

    /// Eight examples of unequal lengths.
    fn dataset(value: Option<f64>) -> Dataset {
        let example = |i: i64| {
            let input_ids: Vec<i64> = (0..6 + i % 5).map(|t| 3 + (i * 31 + t * 17) % 120).collect();
            let mut labels = input_ids.clone();
            labels[..4].fill(IGNORE_INDEX);
            let row = Row { input_ids, prompt_length: 4, ..Row::default() };
            Example { value, ..Example::of(format!("row {i}"), row, labels) }
        };
        Dataset { train: (0..8).map(example).collect(), validation: Vec::new() }
    }

    /// Runs `act` with a trainer of LoReFT with dropout; returns its result and the trained tensors.
    fn with_trainer<T>(
        dataset: &Dataset,
        config: TrainConfig,
        act: impl FnOnce(Trainer) -> TestResult<T>,
    ) -> TestResult<(T, Vec<Tensor>)> {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/tiny_llama");
        let decoder = Decoder::open(model.as_ref(), Kind::Float, Device::Cpu)?;
        let loreft =
            InterventionConfig { dropout: 0.2, ..InterventionConfig::new(Method::Loreft, 4) };
        let base = BaseModel::of(decoder.description(), "tiny");
        let reft = ReftConfig::new(&loreft, vec![1, 3], "f2+l2".parse()?, base);
        tch::manual_seed(7);
        let adapter = ReftAdapter::new(reft, &decoder)?;
        let learner = Learner::new(&decoder, &AdapterStack::one(&adapter), &NextToken);
        let done = act(Trainer::new(&learner, dataset, config)?)?;
        let tensors = learner.parameters().iter().map(|p| p.tensor.detach().copy()).collect();
        Ok((done, tensors))
    }

    /// Losses and gradient norms of steps, and how many of them began with a batch that was made ready ahead.
    fn take(mut trainer: Trainer, steps: &[usize]) -> TestResult<(Vec<f64>, usize)> {
        let (mut numbers, mut ahead) = (Vec::new(), 0);
        for step in steps {
            let batches = trainer.micro_batches(*step)?;
            ahead += usize::from(trainer.ready.as_ref().is_some_and(|(of, _)| *of == batches[0]));
            let Step::Taken(stats) = trainer.step(&batches)? else { return Err("overflow".into()) };
            numbers.extend([stats.loss, stats.grad_norm]);
        }
        Ok((numbers, ahead))
    }

    /// A batch with the value NaN equals no other, so the one made ready ahead is not used.
    #[test]
    fn looking_ahead_changes_no_bit_of_a_run() -> TestResult {
        let directory = tempfile::tempdir()?;
        let path = Some(directory.path().to_owned());
        let in_memory = ReuseConfig::default();
        let in_file = ReuseConfig { memory: Some(0), directory: path, processes: 1 };
        let in_part = ReuseConfig { memory: Some(3000), ..ReuseConfig::default() }; // a few of the rows
        let nothing = TrainConfig { reuse: false, ..config() };
        let by_block = TrainConfig { grad_accum: 2, checkpoint_activations: true, ..config() };
        for (what, reuse, config, expected) in [
            // an epoch has 3 steps: the last one makes a batch of the next epoch ready
            ("in memory", &in_memory, config(), Some(8)),
            ("in a file", &in_file, config(), Some(8)),
            ("in part", &in_part, config(), None), // depends on which rows are cached
            ("nothing", &in_memory, nothing, Some(10)), // every step but the first
            ("micro-batches, by block", &in_memory, by_block, Some(9)), // two steps an epoch
        ] {
            let steps: Vec<usize> = (0..11).collect();
            let run = |value: Option<f64>| {
                let act = |trainer: Trainer| take(trainer.keeping(reuse.clone()), &steps);
                with_trainer(&dataset(value), config.clone(), act)
            };
            let ((numbers, none), tensors) = run(Some(f64::NAN))?;
            let ((same, ahead), same_tensors) = run(None)?;
            assert_eq!((same, same_tensors), (numbers, tensors), "{what}");
            assert_eq!((none, ahead), (0, expected.unwrap_or(ahead)), "{what}");
        }
        Ok(())
    }

    #[test]
    fn a_step_on_other_batches_than_were_to_come_uses_nothing_of_them() -> TestResult {
        let run = |value: Option<f64>| {
            let act = |trainer: Trainer| take(trainer, &[0, 1, 2, 5, 3, 1]);
            with_trainer(&dataset(value), config(), act)
        };
        let ((numbers, _), tensors) = run(Some(f64::NAN))?;
        let ((same, ahead), same_tensors) = run(None)?;
        assert_eq!((same, same_tensors, ahead), (numbers, tensors, 0));
        Ok(())
    }
}
