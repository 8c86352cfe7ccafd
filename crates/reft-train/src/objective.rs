use std::ops::Range;

use reft_core::Parameter;
use reft_models::Dose;
use serde_json::{Map, Value};
use tch::Tensor;

use crate::{Batch, Forwards, Metric, Part, Reference, Result, Sequence};

/// What is learned: the loss of a batch of examples. Which examples rows become, its [`ObjectiveDeclaration`](crate::ObjectiveDeclaration)
/// says.
///
/// The loss of a step is `Σ weight · Σ sums / Σ counts` over its [terms](Self::terms), with sums and counts over all micro-batches of the
/// step and all processes of the run: cutting it into other micro-batches changes nothing but memory.
pub trait Objective {
    /// Its name, as metrics, checkpoints and messages say it.
    fn name(&self) -> &'static str;

    /// What its numbers depend on beside data and model, by the names of options: a run is resumed only with the same.
    fn options(&self) -> Map<String, Value> {
        Map::new()
    }

    /// Parameters of its own (a head), which are trained, clipped and saved in checkpoints with the adapters'.
    fn parameters(&self) -> Vec<Parameter> {
        Vec::new()
    }

    /// Is told before each step which share of the training is done, 0 at the start: for what follows a schedule.
    fn progress(&self, _share: f64) {}

    /// A part of a step's loss that is no sum over examples. It is added once, and is no part of the loss that is reported.
    fn penalty(&self) -> Option<Tensor> {
        None
    }

    /// Tokens of a sequence whose final hidden states are read, beside those that labels are predicted from; an empty range for none.
    fn wanted(&self, _sequence: &Sequence) -> Range<usize> {
        0..0
    }

    /// Whether its loss is made of logits, which an encoder does not have.
    fn reads_logits(&self) -> bool {
        true
    }

    /// How the adapters are used in each forward that is wanted of a batch; the plain model is run without gradient. An objective that runs
    /// its own forward wants none.
    fn doses(&self) -> &[Dose] {
        &[Dose::WHOLE]
    }

    /// Is told when the gradients of a step are whole, before they are clipped and AdamW takes its step: for parameters that are kept on a
    /// surface, whose gradients are to be tangents of it.
    fn before_step(&self) {}

    /// The runs that it compares batches of a part with: what is kept of each is computed once for a sequence, and lies in
    /// [`Forwards::references`] in this order.
    fn references(&self, _part: Part) -> Vec<Reference<'_>> {
        Vec::new()
    }

    /// The parts of the loss, and what is measured beside it.
    fn terms(&self) -> &[Term];

    /// How much of a batch each term is the mean over: target tokens, sequences, pairs.
    fn counts(&self, batch: &Batch) -> Vec<f64>;

    /// Each term's sum over a batch: scalars, differentiable in the parameters of adapters and objective. What is only measured has no
    /// gradient.
    ///
    /// # Errors
    /// What the objective refuses.
    fn sums(&self, forwards: &Forwards) -> Result<Vec<Tensor>>;

    /// What examples held out can be measured by beside the loss, the usual metric first. One that is no [term](Self::terms) is made of what
    /// is [told](Self::told).
    fn metrics(&self) -> &[Metric] {
        &[]
    }

    /// What is told of each example of a batch, and what is right: classes by their indices, or numbers.
    ///
    /// # Errors
    /// What the objective refuses.
    fn told(&self, _forwards: &Forwards) -> Result<Vec<[f64; 2]>> {
        Ok(Vec::new())
    }

    /// Number of classes that it tells apart.
    fn classes(&self) -> usize {
        0
    }
}

/// A part of a loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Term {
    /// What it is called in metrics.
    pub name: &'static str,
    /// Its weight in the loss; 0: it is measured, and no part of the loss.
    pub weight: f64,
}

impl Term {
    /// Something that is measured beside the loss, without a gradient.
    pub const fn measured(name: &'static str) -> Self {
        Self { name, weight: 0.0 }
    }
}
