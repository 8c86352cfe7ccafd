use serde_json::{Map, Value, json};
use tch::Tensor;

use crate::objectives::preference::{OF_PAIRS, PairLoss, Preference, Replies, gap};
use crate::{ObjectiveDeclaration, ObjectiveOptions, Term};

/// Direct preference optimization.
pub static DPO: ObjectiveDeclaration = ObjectiveDeclaration {
    name: "dpo",
    compares: true,
    options: &["beta", "label_smoothing", "reference"],
    build: |run| {
        Ok(Box::new(Preference::new(&DPO, Dpo::of(run.options), Some(run.reference.clone()))))
    },
    ..OF_PAIRS
};

/// `−(1 − ε) log σ(β (r_c − r_x)) − ε log σ(−β (r_c − r_x))`, with label smoothing `ε` (Rafailov et al. 2023, arXiv:2305.18290).
pub(crate) struct Dpo {
    beta: f64,
    label_smoothing: f64,
}

impl Dpo {
    pub(crate) fn of(options: &ObjectiveOptions) -> Self {
        let label_smoothing = options.label_smoothing.unwrap_or(0.0);
        Self { beta: options.beta.unwrap_or(0.1), label_smoothing }
    }
}

impl PairLoss for Dpo {
    fn term(&self) -> Term {
        Term { name: DPO.name, weight: 1.0 }
    }

    fn options(&self) -> Map<String, Value> {
        let beta = ("beta".to_owned(), json!(self.beta));
        Map::from_iter([beta, ("label_smoothing".to_owned(), json!(self.label_smoothing))])
    }

    fn of_pairs(&self, replies: &Replies) -> [Tensor; 2] {
        let rewards = replies.ratios() * self.beta;
        let margin = gap(&rewards);
        let right = margin.log_sigmoid() * (self.label_smoothing - 1.0);
        [right - (-&margin).log_sigmoid() * self.label_smoothing, rewards]
    }
}
