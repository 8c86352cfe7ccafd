use std::ops::Range;

use reft_core::Parameter;
use reft_models::{AdapterStack, Dose};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::{
    Batch, Forwards, Metric, Objective, Part, Reference, ReferenceOutputs, Result, Sequence, Term,
    divergence_of_hidden_states, divergence_of_likeliest,
};

/// Another objective with a penalty against forgetting: the divergence of the next tokens from the frozen model's,
/// `weight · KL(frozen ‖ adapted)`, the mean over labelled tokens that have a token before them, in nats.
///
/// The tokens come from the task's own rows, or from rows that are [replayed](crate::Trainer::replaying). The task's loss does not count
/// replayed rows.
pub struct KeepingClose<'a> {
    task: &'a dyn Objective,
    weight: f64,
    outputs: ReferenceOutputs,
    part: Part,
    terms: Vec<Term>,
}

impl<'a> KeepingClose<'a> {
    /// Keeps the model of an objective close to the frozen model on rows of a part. The divergence is over the frozen model's `top_k` likeliest
    /// tokens, with all other tokens counted as one. With `top_k` 0 it is over the whole vocabulary.
    pub fn new(task: &'a dyn Objective, weight: f64, top_k: usize, part: Part) -> Self {
        let own = Term { name: "kl", weight };
        let terms = task.terms().iter().copied().chain([own]).collect();
        let outputs = if top_k == 0 {
            ReferenceOutputs::HiddenStates
        } else {
            ReferenceOutputs::Likeliest(top_k)
        };
        Self { task, weight, outputs, part, terms }
    }
}

impl Objective for KeepingClose<'_> {
    fn name(&self) -> &'static str {
        self.task.name()
    }

    fn options(&self) -> Map<String, Value> {
        let mut options = self.task.options();
        options.insert("kl_weight".into(), json!(self.weight));
        let top_k = if let ReferenceOutputs::Likeliest(k) = self.outputs { k } else { 0 };
        options.insert("kl_top_k".into(), json!(top_k));
        options
    }

    fn parameters(&self) -> Vec<Parameter> {
        self.task.parameters()
    }

    fn progress(&self, share: f64) {
        self.task.progress(share);
    }

    fn penalty(&self) -> Option<Tensor> {
        self.task.penalty()
    }

    fn wanted(&self, sequence: &Sequence) -> Range<usize> {
        self.task.wanted(sequence)
    }

    /// The divergence reads the first forward, so there is one even if the task runs its own.
    fn doses(&self) -> &[Dose] {
        let of_task = self.task.doses();
        if of_task.is_empty() { &[Dose::WHOLE] } else { of_task }
    }

    fn before_step(&self) {
        self.task.before_step();
    }

    fn references(&self, part: Part) -> Vec<Reference<'_>> {
        let mut references = match part {
            Part::Task => self.task.references(part),
            Part::Replay => Vec::new(),
        };
        if part == self.part {
            references.push(Reference { stack: AdapterStack::EMPTY, outputs: self.outputs });
        }
        references
    }

    fn terms(&self) -> &[Term] {
        &self.terms
    }

    fn counts(&self, batch: &Batch) -> Vec<f64> {
        let mut counts = match batch.part {
            Part::Task => self.task.counts(batch),
            Part::Replay => vec![0.0; self.task.terms().len()],
        };
        let is_own = batch.part == self.part;
        counts.push(if is_own { batch.n_labelled().iter().sum::<i64>() as f64 } else { 0.0 });
        counts
    }

    fn metrics(&self) -> &[Metric] {
        self.task.metrics()
    }

    fn told(&self, forwards: &Forwards) -> Result<Vec<[f64; 2]>> {
        self.task.told(forwards)
    }

    fn classes(&self) -> usize {
        self.task.classes()
    }

    fn sums(&self, forwards: &Forwards) -> Result<Vec<Tensor>> {
        let nothing = || Tensor::zeros([], (Kind::Float, forwards.model.device()));
        let mut sums = match forwards.batch.part {
            Part::Task => self.task.sums(forwards)?,
            Part::Replay => self.task.terms().iter().map(|_| nothing()).collect(),
        };
        sums.push(match forwards.references.last() {
            Some(frozen) if forwards.batch.part == self.part => {
                let (h, _) = forwards.outputs[0].labelled(forwards.batch);
                let divergence = match &frozen[..] {
                    [tokens, log_p] => divergence_of_likeliest(forwards.model, &h, [tokens, log_p]),
                    [reference] => divergence_of_hidden_states(forwards.model, &h, reference),
                    _ => unreachable!("invariant: as it was asked for"),
                };
                divergence.sum(Kind::Float)
            }
            _ => nothing(),
        });
        Ok(sums)
    }
}
