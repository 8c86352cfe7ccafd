use tch::{Kind, Tensor};

use crate::{Batch, Forwards, Objective, ObjectiveDeclaration, Result, RowKind, Term};

/// The next token of each row.
pub static NEXT_TOKEN: ObjectiveDeclaration = NEXT_TOKENS;

/// The base of other declarations: the encoding makes the examples, and nothing else is needed.
pub(crate) const NEXT_TOKENS: ObjectiveDeclaration = ObjectiveDeclaration {
    name: "next-token",
    rows: RowKind::Replies,
    told: None,
    compares: false,
    options: &[],
    metrics: &[],
    each: |records, encoding, _| encoding.each(records),
    check: |_| Ok(()),
    build: |_| Ok(Box::new(NextToken)),
};

/// Predicting every labelled token from the tokens before it: the mean of `−log p(target)` over the target tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct NextToken;

impl Objective for NextToken {
    fn name(&self) -> &'static str {
        NEXT_TOKEN.name
    }

    fn terms(&self) -> &[Term] {
        &[Term { name: "next-token", weight: 1.0 }]
    }

    fn counts(&self, batch: &Batch) -> Vec<f64> {
        vec![batch.n_targets() as f64]
    }

    fn sums(&self, forwards: &Forwards) -> Result<Vec<Tensor>> {
        Ok(vec![forwards.outputs[0].target_losses().sum(Kind::Float)])
    }
}
