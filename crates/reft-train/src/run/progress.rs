use std::path::Path;

use crate::{Best, StepStats, ValidationStats};

/// What a run is going to do, known before its first step.
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
    /// Number of parameters of the base model.
    pub total: usize,
    /// Which kind computes what, in words.
    pub kinds: String,
}

/// Hears what happens in a run; every method has a default that does nothing.
pub trait Progress {
    /// The run begins, or goes on.
    fn started(&mut self, _plan: &Plan) {}

    /// A step was taken.
    fn step(&mut self, _stats: &StepStats) {}

    /// The gradients of a step overflowed f16; it is tried again at this loss scale.
    fn overflowed(&mut self, _step: usize, _loss_scale: f64) {}

    /// Something that costs time but changes no number.
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

/// What became of a step.
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

/// What a run has come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Steps taken, those before a resumption among them.
    pub steps: usize,
    /// Loss of the last step that this call took.
    pub loss: Option<f64>,
    /// The lowest validation loss, and its step.
    pub best: Option<Best>,
}
