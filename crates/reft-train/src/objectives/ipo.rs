use serde_json::{Map, Value, json};
use tch::Tensor;

use crate::objectives::preference::{OF_PAIRS, PairLoss, Preference, Replies, gap};
use crate::{ObjectiveDeclaration, ObjectiveOptions, Term};

/// Identity preference optimization.
pub static IPO: ObjectiveDeclaration = ObjectiveDeclaration {
    name: "ipo",
    compares: true,
    options: &["beta", "reference"],
    build: |run| {
        Ok(Box::new(Preference::new(&IPO, Ipo::of(run.options), Some(run.reference.clone()))))
    },
    ..OF_PAIRS
};

/// `(r_c/|c| − r_x/|x| − 1/2β)²`: ratios per token, as its authors and TRL have it (Azar et al. 2023, arXiv:2310.12036).
pub(crate) struct Ipo {
    beta: f64,
}

impl Ipo {
    pub(crate) fn of(options: &ObjectiveOptions) -> Self {
        Self { beta: options.beta.unwrap_or(0.1) }
    }
}

impl PairLoss for Ipo {
    fn term(&self) -> Term {
        Term { name: IPO.name, weight: 1.0 }
    }

    fn options(&self) -> Map<String, Value> {
        Map::from_iter([("beta".to_owned(), json!(self.beta))])
    }

    fn of_pairs(&self, replies: &Replies) -> [Tensor; 2] {
        let per_token = replies.ratios() / &replies.tokens;
        let loss = (gap(&per_token) - 0.5 / self.beta).square();
        [loss, replies.ratios() * self.beta]
    }
}
