use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Best;

/// The plan of a run, known before its first step.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Optimizer steps in all.
    pub steps: usize,
    /// Steps taken already: more than 0 if the run is resumed.
    pub done: usize,
    /// Optimizer steps of an epoch.
    pub steps_per_epoch: usize,
    /// Examples to train on.
    pub examples: usize,
    /// Examples held out.
    pub validation_examples: usize,
    /// Number of trainable parameters.
    pub trainable: usize,
    /// Of these, the objective's own: a head's.
    pub of_objective: usize,
    /// Number of parameters of the base model.
    pub total: usize,
    /// The kinds that the parts of the computation use, in words.
    pub kinds: String,
    /// Learning rate of the next step.
    pub lr: f64,
}

impl Plan {
    /// Number of trainable parameters without the objective's.
    pub fn of_adapters(&self) -> usize {
        self.trainable - self.of_objective
    }
}

/// Receives the events of a run; every method has a default that does nothing.
pub trait Progress {
    /// The run begins, or goes on.
    fn started(&mut self, _plan: &Plan) {}

    /// A step was taken.
    fn step(&mut self, _stats: &StepStats) {}

    /// The gradients of a step overflowed f16; it is tried again at this loss scale.
    fn overflowed(&mut self, _step: usize, _loss_scale: f64) {}

    /// A warning about time: no number changes.
    fn warned(&mut self, _warning: &str) {}

    /// The examples held out were evaluated.
    fn validated(&mut self, _stats: &ValidationStats) {}

    /// A checkpoint was written.
    fn checkpoint_saved(&mut self, _step: usize, _path: &Path) {}
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}

/// Tells several listeners, one after the other.
pub struct Listeners<'a>(pub Vec<&'a mut dyn Progress>);

impl Listeners<'_> {
    fn each(&mut self, mut tell: impl FnMut(&mut dyn Progress)) {
        self.0.iter_mut().for_each(|listener| tell(&mut **listener));
    }
}

impl Progress for Listeners<'_> {
    fn started(&mut self, plan: &Plan) {
        self.each(|listener| listener.started(plan));
    }

    fn step(&mut self, stats: &StepStats) {
        self.each(|listener| listener.step(stats));
    }

    fn overflowed(&mut self, step: usize, loss_scale: f64) {
        self.each(|listener| listener.overflowed(step, loss_scale));
    }

    fn warned(&mut self, warning: &str) {
        self.each(|listener| listener.warned(warning));
    }

    fn validated(&mut self, stats: &ValidationStats) {
        self.each(|listener| listener.validated(stats));
    }

    fn checkpoint_saved(&mut self, step: usize, path: &Path) {
        self.each(|listener| listener.checkpoint_saved(step, path));
    }
}

/// The outcome of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The adapter was updated.
    Taken(StepStats),
    /// Gradients overflowed f16: nothing was updated, and the loss scale is lower now.
    Overflowed,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// All steps are done. The adapter is the best one if examples were held out, else the last one.
    Finished(Summary),
    /// It was asked to stop. Its checkpoint is written if it has a directory.
    Interrupted(Summary),
}

/// The results of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Steps taken, steps before a resumption included.
    pub steps: usize,
    /// Loss of the last step that this call took.
    pub loss: Option<f64>,
    /// The step of the adapter that is kept, and its validation.
    pub best: Option<Best>,
}

/// A row of `metrics.jsonl` for each optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepStats {
    /// The step, counted from 1.
    pub step: usize,
    /// Epochs done after it, with a fraction.
    pub epoch: f64,
    /// The objective's loss before the step's update; of next tokens the mean of `−log p(target)` over the step's target tokens.
    pub loss: f64,
    /// The mean of each term of the loss, before its weight, and of further measures, by name, if there are several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub terms: BTreeMap<String, f64>,
    /// Learning rate of the update.
    pub lr: f64,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model, padding not among them.
    pub tokens: usize,
    /// Tokens that count in the loss.
    pub target_tokens: i64,
    /// Wall time of the step.
    pub seconds: f64,
    /// Resident memory of the process after the step, in bytes, if the system reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
}

/// A row of `metrics.jsonl` for each validation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ValidationStats {
    /// Steps taken before it; 0: the adapter as it starts.
    pub step: usize,
    /// The objective's loss on the examples held out.
    pub validation_loss: f64,
    /// On these, by name: the mean of each term before its weight, of further measures, and the objective's metrics. Empty if the loss is the
    /// only one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub measured: BTreeMap<String, f64>,
    /// Whether the adapter is the best so far, and kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_best: bool,
    /// Number of their target tokens.
    pub target_tokens: i64,
    /// Wall time of the validation.
    pub seconds: f64,
}
