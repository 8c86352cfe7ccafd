use serde_json::{Map, Value, json};
use tch::Tensor;

use crate::objectives::preference::{OF_PAIRS, PairLoss, Preference, Replies, gap};
use crate::{ObjectiveDeclaration, ObjectiveOptions, Term};

/// Odds ratio preference optimization.
pub static ORPO: ObjectiveDeclaration = ObjectiveDeclaration {
    name: "orpo",
    options: &["beta"],
    build: |run| Ok(Box::new(Preference::new(&ORPO, Orpo::of(run.options), None))),
    ..OF_PAIRS
};

/// The next-token loss of the chosen replies, and `β` times `−log σ(log odds_c − log odds_x)`, where `log odds = l − log(1 − eˡ)` and
/// `l = log π/|·|` (Hong et al. 2024, arXiv:2403.07691).
pub(crate) struct Orpo {
    beta: f64,
}

impl Orpo {
    pub(crate) fn of(options: &ObjectiveOptions) -> Self {
        Self { beta: options.beta.unwrap_or(0.1) }
    }
}

impl PairLoss for Orpo {
    fn term(&self) -> Term {
        Term { name: "odds-ratio", weight: self.beta }
    }

    fn learns_chosen(&self) -> bool {
        true
    }

    fn options(&self) -> Map<String, Value> {
        Map::from_iter([("beta".to_owned(), json!(self.beta))])
    }

    fn of_pairs(&self, replies: &Replies) -> [Tensor; 2] {
        let means = replies.means();
        // a reply that is certain has no finite odds
        let sure = means.clamp_max(-1e-6);
        let log_odds = &sure - (-sure.expm1()).log();
        [-gap(&log_odds).log_sigmoid(), means * self.beta]
    }
}
