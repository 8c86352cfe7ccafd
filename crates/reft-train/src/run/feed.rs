use crate::run::order::epoch_batches;
use crate::{Batch, Example, FrozenStore, Learner, Part, Result, Share, TrainConfig};

/// Which micro-batches each step takes: a function of the examples, the options and the share.
#[derive(Debug)]
pub(crate) struct Feed<'a> {
    examples: &'a [Example],
    /// Their purpose.
    part: Part,
    config: TrainConfig,
    share: Share,
    /// The micro-batches of one epoch, of all processes, as indices.
    order: (usize, Vec<Vec<usize>>),
}

/// Epochs of a run that names neither epochs nor steps.
const DEFAULT_EPOCHS: usize = 3;

impl<'a> Feed<'a> {
    /// The feed of all examples to one process.
    pub(crate) fn new(examples: &'a [Example], config: &TrainConfig) -> Self {
        let order = (0, epoch_batches(examples, config, 0));
        let (part, share) = (Part::Task, Share::WHOLE);
        Self { examples, part, config: config.clone(), share, order }
    }

    /// Examples that are replayed, `batch_size` of them in each step of a process.
    pub(crate) fn of_replay(examples: &'a [Example], batch_size: usize, seed: u64) -> Self {
        let config = TrainConfig { batch_size, grad_accum: 1, seed, ..TrainConfig::default() };
        Self { part: Part::Replay, ..Self::new(examples, &config) }
    }

    /// The feed of one process's share.
    pub(crate) fn sharing(self, share: Share) -> Self {
        Self { share, ..self }
    }

    /// Has a store compute the rows of each micro-batch of the first epoch in one forward.
    pub(crate) fn grouped(&self, learner: &Learner, store: FrozenStore<'a>) -> FrozenStore<'a> {
        let needed = |batch: Vec<usize>| {
            let sequences = batch.into_iter().flat_map(|i| &self.examples[i].sequences);
            sequences.map(|sequence| learner.needed(sequence)).collect()
        };
        store.grouped(epoch_batches(self.examples, &self.config, 0).into_iter().map(needed))
    }

    /// Optimizer steps of the whole run.
    pub(crate) fn total_steps(&self) -> usize {
        self.steps_of(self.config.epochs, self.config.max_steps)
    }

    /// Optimizer steps of a run with this many epochs, or this many steps.
    pub(crate) fn steps_of(&self, epochs: Option<usize>, max_steps: Option<usize>) -> usize {
        let epochs = epochs.unwrap_or(DEFAULT_EPOCHS);
        max_steps.unwrap_or_else(|| epochs * self.steps_per_epoch())
    }

    /// Optimizer steps of an epoch.
    pub(crate) fn steps_per_epoch(&self) -> usize {
        self.share.steps(self.order.1.len(), self.config.grad_accum)
    }

    /// The process's batches of a step, counted from 0, one after the other.
    ///
    /// # Errors
    /// Errors of [`Learner::batch`].
    pub(crate) fn batches(
        &mut self,
        step: usize,
        learner: &Learner,
    ) -> impl Iterator<Item = Result<Batch>> {
        let (epoch, index) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        if self.order.0 != epoch {
            self.order = (epoch, epoch_batches(self.examples, &self.config, epoch));
        }
        let (order, examples, part) = (&self.order.1, self.examples, self.part);
        let places = self.share.places(index, self.config.grad_accum, order.len());
        places.map(move |place| {
            let batch = learner.batch(order[place].iter().map(|&i| &examples[i]))?;
            Ok(Batch { part, ..batch })
        })
    }
}
