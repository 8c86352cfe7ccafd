use reft_models::{AdapterStack, Dose};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::{
    Batch, Error, Forwards, Kept, Metric, Objective, ObjectiveKind, ObjectiveOptions, Outputs,
    Part, Reference, Result, Term, cross_entropy,
};

/// Of two replies to one prompt the chosen one is to be the likelier one.
///
/// With `log π` the log-probability of a reply's tokens, `r = log π − log π_ref` its ratio to a reference run, `c` the chosen and `x` the
/// rejected reply, and `|·|` their tokens, the mean over pairs of
///
/// - DPO (Rafailov et al. 2023, arXiv:2305.18290): `−(1 − ε) log σ(β (r_c − r_x)) − ε log σ(−β (r_c − r_x))`, ε being the label smoothing
/// - IPO (Azar et al. 2023, arXiv:2310.12036), ratios per token as its authors and TRL have it: `(r_c/|c| − r_x/|x| − 1/2β)²`
/// - SimPO (Meng et al. 2024, arXiv:2405.14734): `−log σ(β (log π_c/|c| − log π_x/|x|) − γ)`
/// - ORPO (Hong et al. 2024, arXiv:2403.07691): the next-token loss of the chosen replies, and `β` times
///   `−log σ(log odds_c − log odds_x)`, where `log odds = l − log(1 − eˡ)` and `l = log π/|·|`
/// - RePS (Wu et al. 2025, arXiv:2505.20809), both ways: steered towards the chosen replies
///   `−log σ(max(β (log π_ref(x) − log π_ref(c)), 1) · log π_c/|c| − log π_x/|x|)`, and steered away from them ([`Dose::Away`]) the same with
///   `c` and `x` exchanged; the mean of both
///
/// Measured beside it: the margin between the replies' rewards (`β r`, of SimPO and ORPO `β l`), the share of pairs in which it is above
/// 0, and with a reference `−r` per token of both replies: an estimate of the divergence from it, in nats, so far as the replies are such
/// as it gives.
pub struct Preference<'a> {
    kind: ObjectiveKind,
    beta: f64,
    label_smoothing: f64,
    gamma: f64,
    reference: Option<AdapterStack<'a>>,
    terms: Vec<Term>,
    doses: &'static [Dose],
}

impl<'a> Preference<'a> {
    /// The objective that the options name; `reference` is the run that DPO and IPO compare with.
    ///
    /// # Errors
    /// [`reft_core::Error::OptionValue`] if the options name none of preferences.
    pub fn new(options: &ObjectiveOptions, reference: AdapterStack<'a>) -> Result<Self> {
        let kind = options.objective;
        let (own, beta) = match kind {
            ObjectiveKind::Dpo | ObjectiveKind::Ipo => (kind.name(), 0.1),
            ObjectiveKind::Simpo => (kind.name(), 2.0),
            ObjectiveKind::Reps => (kind.name(), 1.0),
            ObjectiveKind::Orpo => ("odds-ratio", 0.1),
            _ => {
                let (option, found) = ("objective", kind.to_string());
                let expected = "dpo, ipo, orpo, simpo or reps";
                return Err(Error::Core(reft_core::Error::OptionValue { option, found, expected }));
            }
        };
        let beta = options.beta.unwrap_or(beta);
        let weight = if kind == ObjectiveKind::Orpo { beta } else { 1.0 };
        let mut terms = vec![Term { name: own, weight }];
        if kind == ObjectiveKind::Orpo {
            terms.push(Term { name: "next-token", weight: 1.0 });
        }
        terms.extend([Term::measured("margin"), Term::measured("accuracy")]);
        let mut reference = kind.compares().then_some(reference);
        if reference.is_some() {
            terms.push(Term::measured("kl_estimate"));
        }
        let mut doses: &[Dose] = &[Dose::WHOLE];
        if kind == ObjectiveKind::Reps {
            reference = Some(AdapterStack::EMPTY); // of no gradient, but a factor
            terms.push(Term::measured("accuracy_away"));
            doses = &[Dose::WHOLE, Dose::Away];
        }
        let label_smoothing = options.label_smoothing.unwrap_or(0.0);
        let gamma = options.simpo_gamma.unwrap_or(1.0);
        Ok(Self { kind, beta, label_smoothing, gamma, reference, terms, doses })
    }

    /// The loss of each pair, `[n]`, and the reward of each reply, `[2, n]`, from what its sums and lengths are, `[2, n]`.
    fn of_pairs(&self, log_p: &Tensor, ratios: Option<&Tensor>, tokens: &Tensor) -> [Tensor; 2] {
        let gap = |of_replies: &Tensor| of_replies.get(0) - of_replies.get(1);
        let means = || log_p / tokens;
        let ratios = || ratios.expect("invariant: there is a reference run");
        match self.kind {
            ObjectiveKind::Simpo => {
                let rewards = means() * self.beta;
                [-(gap(&rewards) - self.gamma).log_sigmoid(), rewards]
            }
            ObjectiveKind::Orpo => {
                let means = means();
                // a reply that is certain has no finite odds
                let sure = means.clamp_max(-1e-6);
                let log_odds = &sure - (-sure.expm1()).log();
                [-gap(&log_odds).log_sigmoid(), means * self.beta]
            }
            ObjectiveKind::Ipo => {
                let loss = (gap(&(ratios() / tokens)) - 0.5 / self.beta).square();
                [loss, ratios() * self.beta]
            }
            ObjectiveKind::Reps => {
                let gap = gap(&(log_p - ratios())); // log π_ref(c) − log π_ref(x)
                let factor = (-gap * self.beta).clamp_min(1.0).detach();
                let means = means();
                let preferred = means.get(0) * factor - means.get(1);
                [-preferred.log_sigmoid(), means]
            }
            _ => {
                let rewards = ratios() * self.beta;
                let margin = gap(&rewards);
                let right = margin.log_sigmoid() * (self.label_smoothing - 1.0);
                [right - (-&margin).log_sigmoid() * self.label_smoothing, rewards]
            }
        }
    }
}

impl Objective for Preference<'_> {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn options(&self) -> Map<String, Value> {
        let mut options = Map::from_iter([("beta".to_owned(), json!(self.beta))]);
        match (self.kind, &self.reference) {
            (ObjectiveKind::Simpo, _) => {
                _ = options.insert("simpo_gamma".into(), json!(self.gamma))
            }
            (ObjectiveKind::Dpo, _) => {
                options.insert("label_smoothing".into(), json!(self.label_smoothing));
            }
            _ => {}
        }
        if let Some(reference) = &self.reference {
            options.insert("reference".into(), json!(reference.method()));
        }
        options
    }

    fn doses(&self) -> &[Dose] {
        self.doses
    }

    fn references(&self, part: Part) -> Vec<Reference<'_>> {
        match &self.reference {
            Some(stack) if part == Part::Task => {
                vec![Reference { stack: stack.clone(), kept: Kept::LogProbabilities }]
            }
            _ => Vec::new(),
        }
    }

    fn terms(&self) -> &[Term] {
        &self.terms
    }

    fn metrics(&self) -> &[Metric] {
        self.kind.metrics()
    }

    fn counts(&self, batch: &Batch) -> Vec<f64> {
        let of_rows = batch.n_labelled();
        let of_term = |term: &Term| match term.name {
            "next-token" => batch.rows.iter().map(|rows| of_rows[rows.start] as f64).sum(),
            "kl_estimate" => of_rows.iter().sum::<i64>() as f64,
            _ => batch.rows.len() as f64,
        };
        self.terms.iter().map(of_term).collect()
    }

    fn sums(&self, forwards: &Forwards) -> Result<Vec<Tensor>> {
        let batch = forwards.batch;
        // log p of every labelled token, [m]
        let log_p = |outputs: &Outputs| {
            let (h, labels) = outputs.labelled(batch);
            -cross_entropy(forwards.model, &h, &labels)
        };
        let away = forwards.outputs.get(1).map(log_p);
        let log_p = log_p(&forwards.outputs[0]);
        let of_rows = batch.n_labelled();
        let places = |i: usize| batch.rows.iter().map(move |rows| (rows.start + i) as i64);
        let places: Vec<i64> = places(0).chain(places(1)).collect();
        let places = Tensor::from_slice(&places).to_device(log_p.device());
        let of_replies = |of_rows: &Tensor| of_rows.index_select(0, &places).view([2, -1]); // [2, n]
        let summed = |of_labels: &Tensor| {
            let rows = of_labels.split_with_sizes(&of_rows[..], 0);
            let sums: Vec<Tensor> = rows.iter().map(|own| own.sum(Kind::Float)).collect();
            of_replies(&Tensor::stack(&sums, 0))
        };
        let tokens = Tensor::from_slice(&of_rows).to_device(log_p.device()).to_kind(Kind::Float);
        let tokens = of_replies(&tokens);
        let own = summed(&log_p);
        let reference = forwards.references.first().map(|kept| &kept[0]);
        let ratios = reference.map(|reference| &own - summed(reference));
        let [mut loss, rewards] = self.of_pairs(&own, ratios.as_ref(), &tokens);
        let margin_of = |rewards: &Tensor| (rewards.get(0) - rewards.get(1)).detach();
        let (margin, mut margin_away) = (margin_of(&rewards), None);
        if let Some(away) = away {
            // steered away, the rejected reply is the one to be preferred
            let own = summed(&away);
            let ratios = reference.map(|reference| (&own - summed(reference)).flip([0]));
            let [of_away, rewards] =
                self.of_pairs(&own.flip([0]), ratios.as_ref(), &tokens.flip([0]));
            loss = (loss + of_away) * 0.5;
            margin_away = Some(margin_of(&rewards));
        }
        let is_right = |margin: &Tensor| margin.gt(0.0).to_kind(Kind::Float).sum(Kind::Float);
        let sum_of = |term: &Term| match term.name {
            "next-token" => -own.get(0).sum(Kind::Float),
            "margin" => margin.sum(Kind::Float),
            "accuracy" => is_right(&margin),
            "accuracy_away" => is_right(margin_away.as_ref().unwrap_or(&margin)),
            "kl_estimate" => match reference {
                Some(reference) => (reference - log_p.detach()).sum(Kind::Float),
                None => margin.zeros_like().sum(Kind::Float),
            },
            _ => loss.sum(Kind::Float),
        };
        Ok(self.terms.iter().map(sum_of).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

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
            let objective = Preference::new(&from_value(case)?, AdapterStack::EMPTY)?;
            let log_p = both(&fixed["values"], ["chosen", "rejected"])?.set_requires_grad(true);
            let ratios = objective.reference.is_some().then(|| &log_p - &reference);
            let [loss, rewards] = objective.of_pairs(&log_p, ratios.as_ref(), &tokens);
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
