use reft_core::Parameter;
use reft_models::{AdapterStack, Dose};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::objectives::next_token::NEXT_TOKENS;
use crate::{
    Batch, Forwards, Metric, Objective, ObjectiveDeclaration, Outputs, Part, Reference,
    ReferenceOutputs, Result, RowKind, Term, cross_entropy,
};

/// The common part of all preferences' declarations; each sets its own name, options and `build`.
pub(crate) const OF_PAIRS: ObjectiveDeclaration =
    ObjectiveDeclaration { rows: RowKind::Pairs, metrics: &[Metric::Accuracy], ..NEXT_TOKENS };

/// The loss of pairs: of two replies to one prompt the chosen one should be the likelier one.
///
/// With `log π` the log-probability of a reply's tokens, `r = log π − log π_ref` its ratio to a reference run, `c` the chosen and `x` the
/// rejected reply, and `|·|` their tokens, the loss is the mean over pairs of a [`PairLoss`]: DPO, IPO, SimPO, ORPO or RePS.
///
/// Also measured: the margin between the replies' rewards (`β r`; `β l` for SimPO and ORPO), the share of pairs with a margin above 0, and
/// with a reference `−r` per token of both replies. This estimates the divergence from the reference in nats, if the replies are typical of
/// it.
pub(crate) struct Preference<'a> {
    declaration: &'static ObjectiveDeclaration,
    loss: Box<dyn PairLoss>,
    reference: Option<AdapterStack<'a>>,
    /// The quantity of each term.
    measures: Vec<Measure>,
    terms: Vec<Term>,
}

/// The quantity of a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measure {
    /// The pairs' losses.
    Pairs,
    /// The next-token loss of the chosen replies.
    Chosen,
    /// The chosen replies' rewards less the rejected ones'.
    Margin,
    /// Whether the margin is above 0.
    Accuracy,
    /// Whether the rejected reply has the higher reward when the model is steered away.
    AccuracyAway,
    /// How far the replies' log-probabilities are below the reference run's.
    KlEstimate,
}

/// The tensors that a batch's terms are computed from.
struct Measured<'t> {
    /// The pairs' losses, `[n]`.
    losses: Tensor,
    /// `log p` of the chosen replies, `[n]`.
    chosen: Tensor,
    /// The margins, `[n]`, without gradient: towards the chosen replies, and away from them.
    margins: Vec<Tensor>,
    /// `log p` of every labelled token, `[m]`, and the reference run's.
    log_p: &'t Tensor,
    reference: Option<&'t Tensor>,
}

impl Measure {
    /// The sum over a batch.
    fn sum(self, of: &Measured) -> Tensor {
        let is_right = |margin: &Tensor| margin.gt(0.0).to_kind(Kind::Float);
        let summed = match self {
            Self::Pairs => of.losses.shallow_clone(),
            Self::Chosen => -&of.chosen,
            Self::Margin => of.margins[0].shallow_clone(),
            Self::Accuracy => is_right(&of.margins[0]),
            Self::AccuracyAway => is_right(&of.margins[1]),
            Self::KlEstimate => {
                of.reference.expect("invariant: there is a reference run") - of.log_p.detach()
            }
        };
        summed.sum(Kind::Float)
    }

    /// The count that its mean is divided by.
    fn count(self, batch: &Batch) -> f64 {
        let of_rows = batch.n_labelled();
        match self {
            Self::Chosen => batch.rows.iter().map(|rows| of_rows[rows.start] as f64).sum(),
            Self::KlEstimate => of_rows.iter().sum::<i64>() as f64,
            _ => batch.rows.len() as f64,
        }
    }
}

impl<'a> Preference<'a> {
    /// The objective of a loss. `reference` is the run to compare with, if the loss needs one.
    pub(crate) fn new(
        declaration: &'static ObjectiveDeclaration,
        loss: impl PairLoss + 'static,
        reference: Option<AdapterStack<'a>>,
    ) -> Self {
        let mut measures = vec![(Measure::Pairs, loss.term())];
        if loss.learns_chosen() {
            measures.push((Measure::Chosen, Term { name: "next-token", weight: 1.0 }));
        }
        measures.push((Measure::Margin, Term::measured("margin")));
        measures.push((Measure::Accuracy, Term::measured("accuracy")));
        if declaration.compares {
            measures.push((Measure::KlEstimate, Term::measured("kl_estimate")));
        }
        if loss.steers_away() {
            measures.push((Measure::AccuracyAway, Term::measured("accuracy_away")));
        }
        let (measures, terms) = measures.into_iter().unzip();
        Self { declaration, loss: Box::new(loss), reference, measures, terms }
    }
}

/// How the loss of a pair follows from the log-probabilities of its replies.
pub(crate) trait PairLoss {
    /// The pairs' term of the loss.
    fn term(&self) -> Term;

    /// Whether the next-token loss of the chosen replies stands beside it.
    fn learns_chosen(&self) -> bool {
        false
    }

    /// Whether a second run steers away from the chosen replies, in which the rejected ones are to be preferred.
    fn steers_away(&self) -> bool {
        false
    }

    /// The options that it depends on, by name.
    fn options(&self) -> Map<String, Value>;

    /// Parameters of its own.
    fn parameters(&self) -> Vec<Parameter> {
        Vec::new()
    }

    /// The forwards that the trainer runs for it; none if it runs its own.
    fn doses(&self) -> &[Dose] {
        &[Dose::WHOLE]
    }

    /// `log p` of every labelled token, `[m]`, in each of its runs.
    ///
    /// # Errors
    /// Errors of the model.
    fn log_p(&self, forwards: &Forwards) -> Result<Vec<Tensor>> {
        Ok(forwards.outputs.iter().map(|outputs| log_p_of_labels(forwards, outputs)).collect())
    }

    /// The loss of each pair, `[n]`, and the reward of each reply, `[2, n]`.
    fn of_pairs(&self, replies: &Replies) -> [Tensor; 2];
}

/// The log-probabilities of the replies of some pairs: `[2, n]` each, the preferred ones first.
pub(crate) struct Replies {
    /// The sum of `log p` of a reply's tokens.
    pub(crate) log_p: Tensor,
    /// That sum less the reference run's, if there is one.
    pub(crate) ratios: Option<Tensor>,
    /// Number of tokens.
    pub(crate) tokens: Tensor,
}

impl Replies {
    /// `log p` per token.
    pub(crate) fn means(&self) -> Tensor {
        &self.log_p / &self.tokens
    }

    /// [`Self::ratios`] of an objective that has a reference run.
    pub(crate) fn ratios(&self) -> &Tensor {
        self.ratios.as_ref().expect("invariant: there is a reference run")
    }
}

/// The preferred replies' values less the others', `[n]`.
pub(crate) fn gap(of_replies: &Tensor) -> Tensor {
    of_replies.get(0) - of_replies.get(1)
}

/// `log p` of every labelled token that has a token before it, `[m]`, as a forward predicts them.
pub(crate) fn log_p_of_labels(forwards: &Forwards, outputs: &Outputs) -> Tensor {
    let (h, labels) = outputs.labelled(forwards.batch);
    -cross_entropy(forwards.model, &h, &labels)
}

impl Objective for Preference<'_> {
    fn name(&self) -> &'static str {
        self.declaration.name
    }

    fn options(&self) -> Map<String, Value> {
        let mut options = self.loss.options();
        if let Some(reference) = &self.reference {
            options.insert("reference".into(), json!(reference.method()));
        }
        options
    }

    fn parameters(&self) -> Vec<Parameter> {
        self.loss.parameters()
    }

    fn doses(&self) -> &[Dose] {
        self.loss.doses()
    }

    fn references(&self, part: Part) -> Vec<Reference<'_>> {
        match &self.reference {
            Some(stack) if part == Part::Task => {
                vec![Reference {
                    stack: stack.clone(),
                    outputs: ReferenceOutputs::LogProbabilities,
                }]
            }
            _ => Vec::new(),
        }
    }

    fn terms(&self) -> &[Term] {
        &self.terms
    }

    fn metrics(&self) -> &[Metric] {
        self.declaration.metrics
    }

    fn counts(&self, batch: &Batch) -> Vec<f64> {
        self.measures.iter().map(|measure| measure.count(batch)).collect()
    }

    fn sums(&self, forwards: &Forwards) -> Result<Vec<Tensor>> {
        let batch = forwards.batch;
        let runs = self.loss.log_p(forwards)?;
        let device = runs[0].device();
        let of_rows = batch.n_labelled();
        let places = |i: usize| batch.rows.iter().map(move |rows| (rows.start + i) as i64);
        let places: Vec<i64> = places(0).chain(places(1)).collect();
        let places = Tensor::from_slice(&places).to_device(device);
        let of_replies = |of_rows: &Tensor| of_rows.index_select(0, &places).view([2, -1]); // [2, n]
        let summed = |of_labels: &Tensor| {
            let rows = of_labels.split_with_sizes(&of_rows[..], 0);
            let sums: Vec<Tensor> = rows.iter().map(|own| own.sum(Kind::Float)).collect();
            of_replies(&Tensor::stack(&sums, 0))
        };
        let tokens =
            of_replies(&Tensor::from_slice(&of_rows).to_device(device).to_kind(Kind::Float));
        let reference = forwards.references.first().map(|kept| &kept[0]);
        let of_reference = reference.map(summed);
        let (mut losses, mut margins) = (Vec::new(), Vec::new());
        for (i, log_p) in runs.iter().enumerate() {
            // steered away, the rejected reply is the one to be preferred
            let preferred = |replies: Tensor| if i == 0 { replies } else { replies.flip([0]) };
            let log_p = summed(log_p);
            let ratios = of_reference.as_ref().map(|reference| preferred(&log_p - reference));
            let tokens = preferred(tokens.shallow_clone());
            let replies = Replies { log_p: preferred(log_p), ratios, tokens };
            let [loss, rewards] = self.loss.of_pairs(&replies);
            losses.push(loss);
            margins.push(gap(&rewards).detach());
        }
        let chosen = summed(&runs[0]).get(0);
        let losses = Tensor::stack(&losses, 0).mean_dim([0i64].as_slice(), false, Kind::Float);
        let measured = Measured { losses, chosen, margins, log_p: &runs[0], reference };
        Ok(self.measures.iter().map(|measure| measure.sum(&measured)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ObjectiveOptions;
    use crate::objectives::{dpo::Dpo, ipo::Ipo, orpo::Orpo, simpo::Simpo};
    use serde_json::from_value;

    type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

    fn loss_of(options: &ObjectiveOptions) -> Box<dyn PairLoss> {
        match options.objective.name {
            "dpo" => Box::new(Dpo::of(options)),
            "ipo" => Box::new(Ipo::of(options)),
            "orpo" => Box::new(Orpo::of(options)),
            _ => Box::new(Simpo::of(options)),
        }
    }

    /// Oracle: TRL 1.16, tools/oracle/make_preferences.py; log-probabilities that no model gave.
    #[test]
    fn losses_and_gradients_of_fixed_log_probabilities_are_trls() -> TestResult {
        let oracle =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/preferences/preferences.json");
        let oracle: Value = serde_json::from_str(&std::fs::read_to_string(oracle)?)?;
        let fixed = &oracle["fixed"];
        let both =
            |table: &Value, names: [&str; 2]| -> std::result::Result<Tensor, serde_json::Error> {
                let rows = names.map(|name| from_value::<Vec<f32>>(table[name].clone()));
                let [one, other] = rows;
                Ok(Tensor::stack(&[Tensor::from_slice(&one?), Tensor::from_slice(&other?)], 0))
            };
        let tokens = both(&fixed["lengths"], ["chosen", "rejected"])?;
        let reference = both(&fixed["values"], ["ref_chosen", "ref_rejected"])?;
        for (name, expected) in fixed["cases"].as_object().ok_or("cases")? {
            let mut case = oracle["cases"][name].clone();
            case.as_object_mut().ok_or("case")?.remove("steps");
            let options: ObjectiveOptions = from_value(case)?;
            let log_p = both(&fixed["values"], ["chosen", "rejected"])?.set_requires_grad(true);
            let ratios = options.objective.compares.then(|| &log_p - &reference);
            let replies =
                Replies { log_p: log_p.shallow_clone(), ratios, tokens: tokens.shallow_clone() };
            let [loss, rewards] = loss_of(&options).of_pairs(&replies);
            let loss = loss.mean(Kind::Float);
            loss.backward();
            let margin = rewards.get(0) - rewards.get(1);
            let accuracy = margin.gt(0.0).to_kind(Kind::Float).mean(Kind::Float);
            for (found, field) in
                [(loss, "loss"), (margin.mean(Kind::Float), "margin"), (accuracy, "accuracy")]
            {
                let (found, expected) =
                    (found.double_value(&[]), expected[field].as_f64().ok_or("number")?);
                assert!(
                    (found - expected).abs() < 1e-5 * expected.abs().max(1.0),
                    "{name} {field}: {found} {expected}"
                ); // f32
            }
            let gradient: [Vec<f32>; 2] = from_value(expected["gradient"].clone())?;
            let gradient = Tensor::stack(&gradient.map(|own| Tensor::from_slice(&own)), 0);
            assert!(gradient.abs().max().double_value(&[]) > 1e-3, "{name}: no power");
            let difference = (log_p.grad() - gradient).abs().max().double_value(&[]);
            assert!(difference < 1e-5, "{name}: gradients differ by {difference:e}"); // f32
        }
        Ok(())
    }
}
