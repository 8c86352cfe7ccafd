use std::cell::RefCell;

use reft_core::{AlignmentSet, Annealing};
use reft_models::Dose;
use reft_train::{Batch, Forwards, Objective, Result, Term};
use tch::{Kind, Tensor};

use crate::InterchangeRuns;

/// The objective of distributed alignment search: base runs with swaps should answer as the causal model does.
///
/// Examples are the bases of counterfactuals with the expected answers, known by their ids. The trained tensors are in the
/// [`Alignment`](crate::Alignment) of the runs, which must be in the trainer's stack; the model is the model of the runs. The loss is summed
/// over the trials and divided by the number of targets of one trial, so each trial is trained as if alone.
///
/// Activations are kept until the backward, even with activation checkpointing in the trainer: the forward is the objective's own.
pub struct InterchangeObjective<'a> {
    runs: InterchangeRuns<'a>,
    last: RefCell<Option<Tensor>>, // losses of the last batch, [trials, m]
}

impl<'a> InterchangeObjective<'a> {
    /// The objective of these runs.
    pub fn new(runs: InterchangeRuns<'a>) -> Self {
        Self { runs, last: RefCell::new(None) }
    }

    /// The runs, to measure the trained alignments.
    pub fn runs(&self) -> &InterchangeRuns<'a> {
        &self.runs
    }

    /// The mean loss of each trial in the last batch; empty if there was none.
    pub fn last_losses(&self) -> Vec<f64> {
        let Some(losses) = &*self.last.borrow() else { return Vec::new() };
        let means = losses.mean_dim([1i64].as_slice(), false, Kind::Double);
        Vec::try_from(means).expect("invariant: a mean for each trial") // sync
    }
}

impl Objective for InterchangeObjective<'_> {
    fn name(&self) -> &'static str {
        "interchange"
    }

    fn progress(&self, share: f64) {
        if let Some(set) = self.runs.alignment().set() {
            set.set_temperature(Annealing::default().at(share));
        }
    }

    fn penalty(&self) -> Option<Tensor> {
        self.runs.alignment().set().and_then(AlignmentSet::penalty)
    }

    fn doses(&self) -> &[Dose] {
        &[]
    }

    fn terms(&self) -> &[Term] {
        &[Term { name: "loss", weight: 1.0 }]
    }

    fn counts(&self, batch: &Batch) -> Vec<f64> {
        vec![batch.n_targets() as f64]
    }

    fn sums(&self, forwards: &Forwards) -> Result<Vec<Tensor>> {
        let losses = self.runs.target_losses(forwards.batch, forwards.mode)?;
        let of_trials = losses.detach().view([self.runs.trials.len() as i64, -1]);
        *self.last.borrow_mut() = Some(of_trials);
        Ok(vec![losses.sum(Kind::Float)])
    }
}
