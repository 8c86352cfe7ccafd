use crate::run::checkpoint::Best;
use crate::run::metrics::StepStats;

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
