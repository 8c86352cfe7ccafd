use serde_json::{Map, Value, json};
use tch::Tensor;

use crate::objectives::preference::{OF_PAIRS, PairLoss, Preference, Replies, gap};
use crate::{ObjectiveDeclaration, ObjectiveOptions, Term};

/// Simple preference optimization.
pub static SIMPO: ObjectiveDeclaration = ObjectiveDeclaration {
    name: "simpo",
    options: &["beta", "simpo_gamma"],
    build: |run| Ok(Box::new(Preference::new(&SIMPO, Simpo::of(run.options), None))),
    ..OF_PAIRS
};

/// `−log σ(β (log π_c/|c| − log π_x/|x|) − γ)` (Meng et al. 2024, arXiv:2405.14734).
pub(crate) struct Simpo {
    beta: f64,
    gamma: f64,
}

impl Simpo {
    pub(crate) fn of(options: &ObjectiveOptions) -> Self {
        let gamma = options.simpo_gamma.unwrap_or(1.0);
        Self { beta: options.beta.unwrap_or(2.0), gamma }
    }
}

impl PairLoss for Simpo {
    fn term(&self) -> Term {
        Term { name: SIMPO.name, weight: 1.0 }
    }

    fn options(&self) -> Map<String, Value> {
        let beta = ("beta".to_owned(), json!(self.beta));
        Map::from_iter([beta, ("simpo_gamma".to_owned(), json!(self.gamma))])
    }

    fn of_pairs(&self, replies: &Replies) -> [Tensor; 2] {
        let rewards = replies.means() * self.beta;
        [-(gap(&rewards) - self.gamma).log_sigmoid(), rewards]
    }
}
