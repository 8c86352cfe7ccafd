use crate::Result;
use crate::batches::{Batch, epoch_batches};
use crate::dataset::Example;
use crate::reuse::FrozenStore;
use crate::share::Share;
use crate::train_config::TrainConfig;

/// The examples as a run is fed with them: which micro-batches each step takes. A function of the examples, the options and the share.
#[derive(Debug)]
pub(crate) struct Feed<'a> {
    examples: &'a [Example],
    config: TrainConfig,
    share: Share,
    /// The micro-batches of one epoch, those of all processes, as indices.
    order: (usize, Vec<Vec<usize>>),
    /// A step to come, and its micro-batches.
    collated: Option<(usize, Vec<Batch>)>,
}

/// Epochs of a run that names neither epochs nor steps.
const DEFAULT_EPOCHS: usize = 3;

impl<'a> Feed<'a> {
    /// All of the examples.
    pub(crate) fn new(examples: &'a [Example], config: &TrainConfig) -> Self {
        let order = (0, order_of(examples, config, 0));
        Self { examples, config: config.clone(), share: Share::WHOLE, order, collated: None }
    }

    /// One process's share of them.
    pub(crate) fn sharing(self, share: Share) -> Self {
        Self { share, collated: None, ..self }
    }

    /// Has a store compute rows side by side that stand in one micro-batch of the first epoch.
    pub(crate) fn grouped(&self, store: FrozenStore<'a>) -> FrozenStore<'a> {
        store.grouped(self.examples, &order_of(self.examples, &self.config, 0))
    }

    /// Optimizer steps of the whole run.
    pub(crate) fn total_steps(&self) -> usize {
        let epochs = self.config.epochs.unwrap_or(DEFAULT_EPOCHS);
        self.config.max_steps.unwrap_or_else(|| epochs * self.steps_per_epoch())
    }

    /// Optimizer steps of an epoch.
    pub(crate) fn steps_per_epoch(&self) -> usize {
        self.share.steps(self.order.1.len(), self.config.grad_accum)
    }

    /// The process's batches of a step, counted from 0.
    ///
    /// # Errors
    /// What [`Batch::collate`] refuses.
    pub(crate) fn step(&mut self, step: usize, virtual_tokens: usize) -> Result<Vec<Batch>> {
        if let Some((_, batches)) = self.collated.take_if(|(of, _)| *of == step) {
            return Ok(batches);
        }
        let (epoch, index) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        if self.order.0 != epoch {
            self.order = (epoch, order_of(self.examples, &self.config, epoch));
        }
        let examples = |indices: &Vec<usize>| {
            Batch::collate(indices.iter().map(|&i| &self.examples[i]), virtual_tokens)
        };
        let order = &self.order.1;
        let places = self.share.places(index, self.config.grad_accum, order.len());
        places.map(|place| examples(&order[place])).collect()
    }

    /// The first batch of a step to come, whose batches are kept until then; `None` after the last step, or if a batch cannot be made: its
    /// step will tell.
    pub(crate) fn first_of(&mut self, step: usize, virtual_tokens: usize) -> Option<Batch> {
        if step >= self.total_steps() {
            return None;
        }
        let batches = self.step(step, virtual_tokens).ok()?;
        let first = batches.first().cloned();
        self.collated = Some((step, batches));
        first
    }
}

fn order_of(examples: &[Example], config: &TrainConfig, epoch: usize) -> Vec<Vec<usize>> {
    epoch_batches(examples, config.batch_size, config.shuffle, config.seed, epoch)
}
