use tch::{Kind, Tensor};

use crate::Result;
use crate::data::batch::Batch;
use crate::forward::outputs::Forwards;
use crate::objectives::objective::{Objective, Term};

/// Predicting every labelled token from those before it: the mean of `−log p(target)` over the target tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct NextToken;

impl Objective for NextToken {
    fn name(&self) -> &'static str {
        "next-token"
    }

    fn terms(&self) -> &[Term] {
        &[Term { name: "loss", weight: 1.0 }]
    }

    fn counts(&self, batch: &Batch) -> Vec<f64> {
        vec![batch.n_targets() as f64]
    }

    fn sums(&self, forwards: &Forwards) -> Result<Vec<Tensor>> {
        Ok(vec![forwards.outputs[0].target_losses().sum(Kind::Float)])
    }
}
