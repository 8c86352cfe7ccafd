use std::ops::Range;

use reft_core::Parameter;
use reft_models::Dose;
use serde_json::{Map, Value};
use tch::Tensor;

use crate::{Batch, Forwards, Metric, Part, Reference, Result, Sequence};

/// An objective: the loss of a batch of examples. Its [`ObjectiveDeclaration`](crate::ObjectiveDeclaration) says which examples rows become.
///
/// The loss of a step is `Σ weight · Σ sums / Σ counts` over its [terms](Self::terms), with sums and counts over all micro-batches of the
/// step and all processes of the run. So another division of the step into micro-batches changes only the memory.
pub trait Objective {
    /// Its name in metrics, checkpoints and messages.
    fn name(&self) -> &'static str;

    /// The options that its results depend on, by name. A run is resumed only with the same values.
    fn options(&self) -> Map<String, Value> {
        Map::new()
    }

    /// Its own parameters, such as a head's. They are trained, clipped and saved in checkpoints together with the adapters' parameters.
    fn parameters(&self) -> Vec<Parameter> {
        Vec::new()
    }

    /// Called before each step with the finished share of the training, from 0. It is for quantities on a schedule.
    fn progress(&self, _share: f64) {}

    /// A part of a step's loss, a scalar, that is not a sum over examples. It is added once, and is not part of the reported loss.
    fn penalty(&self) -> Option<Tensor> {
        None
    }

    /// Tokens of a sequence whose final hidden states are read, beside the tokens that labels are predicted from; an empty range for none.
    fn wanted(&self, _sequence: &Sequence) -> Range<usize> {
        0..0
    }

    /// Whether its loss needs logits; encoders have none.
    fn reads_logits(&self) -> bool {
        true
    }

    /// The adapters' dose in each forward of a batch; the plain model runs without gradient. Empty if the objective runs its own forward.
    fn doses(&self) -> &[Dose] {
        &[Dose::WHOLE]
    }

    /// Called when a step's gradients are complete, before clipping and AdamW. It is for parameters on a constraint surface: their gradients must
    /// be tangent to the surface.
    fn before_step(&self) {}

    /// The runs that batches of a part are compared with. Their [`ReferenceOutputs`](crate::ReferenceOutputs) outputs are computed once per sequence;
    /// [`Forwards::references`] holds them in this order.
    fn references(&self, _part: Part) -> Vec<Reference<'_>> {
        Vec::new()
    }

    /// The parts of the loss, and further measures.
    fn terms(&self) -> &[Term];

    /// Each term's count in a batch, the divisor of its mean: target tokens, sequences, pairs.
    fn counts(&self, batch: &Batch) -> Vec<f64>;

    /// Each term's sum over a batch: scalars, differentiable in the parameters of adapters and objective. A term that is only measured has no
    /// gradient.
    ///
    /// # Errors
    /// Errors of the objective.
    fn sums(&self, forwards: &Forwards) -> Result<Vec<Tensor>>;

    /// The metrics of held-out examples beside the loss, the usual one first. A metric that is no [term](Self::terms) is computed from the
    /// predictions that [`Self::told`] returns.
    fn metrics(&self) -> &[Metric] {
        &[]
    }

    /// The prediction and the label of each example of a batch: classes by their indices, or numbers.
    ///
    /// # Errors
    /// Errors of the objective.
    fn told(&self, _forwards: &Forwards) -> Result<Vec<[f64; 2]>> {
        Ok(Vec::new())
    }

    /// Number of classes that it distinguishes.
    fn classes(&self) -> usize {
        0
    }
}

/// A part of a loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Term {
    /// Its name in metrics.
    pub name: &'static str,
    /// Its weight in the loss; 0: it is only measured, and is no part of the loss.
    pub weight: f64,
}

impl Term {
    /// A term that is measured beside the loss: weight 0, no gradient.
    pub const fn measured(name: &'static str) -> Self {
        Self { name, weight: 0.0 }
    }
}
