use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::str::FromStr;

use reft_core::{Intervention, Parameter, Removal, Subspace, in_f32};
use reft_models::{AdapterStack, Dose, HookPoint, Hooks, Mode, Site, Span, beside};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use crate::objectives::preference::{
    OF_PAIRS, PairLoss, Preference, Replies, gap, log_p_of_labels,
};
use crate::{Forwards, Ingredients, Objective, ObjectiveDeclaration, Result, Term, cross_entropy};

/// Reference-free preference steering.
pub static REPS: ObjectiveDeclaration = ObjectiveDeclaration {
    name: "reps",
    options: &["beta", "steering_factors"],
    build,
    ..OF_PAIRS
};

fn build<'a>(run: &'a Ingredients<'a>) -> Result<Box<dyn Objective + 'a>> {
    let drawn = |factors: &Factors| -> Result<Drawn> {
        Ok(Drawn::new(factors, run.directions(REPS.name)?))
    };
    let drawn = run.options.steering_factors.as_ref().map(drawn).transpose()?;
    let loss = Reps { beta: run.options.beta.unwrap_or(1.0), drawn };
    // the plain model's run has no gradient: it only weights the loss
    Ok(Box::new(Preference::new(&REPS, loss, Some(AdapterStack::EMPTY))))
}

/// RePS (Wu et al. 2025, arXiv:2505.20809): the mean of two losses. Steered towards the chosen replies, the loss is
/// `−log σ(max(β (log π_ref(x) − log π_ref(c)), 1) · log π_c/|c| − log π_x/|x|)`. Steered away from them ([`Dose::Away`]), it is the same
/// with `c` and `x` exchanged.
///
/// With factors it steers as in its authors' training, and runs its own forwards: see [`Drawn`].
struct Reps {
    beta: f64,
    drawn: Option<Drawn>,
}

/// Steering by factors that are drawn: each sequence by `h + (f + b) v`, and away by `h − relu(vᵀ h + b)/‖v‖² v`.
///
/// `f` is drawn from a list for each sequence, separately for the replies of a pair, as in stanfordnlp/axbench; held-out examples are
/// measured at the mean. The bias `b` starts at 0, is trained, and is no part of the adapter.
#[derive(Debug)]
struct Drawn {
    factors: Vec<f64>,
    bias: Tensor,                       // [1]
    directions: BTreeMap<Site, Tensor>, // [d] each
}

impl Drawn {
    fn new(factors: &Factors, directions: BTreeMap<Site, Tensor>) -> Self {
        let device = directions.values().next().map_or(Device::Cpu, Tensor::device);
        let bias = Tensor::zeros([1], (Kind::Float, device)).set_requires_grad(true);
        Self { factors: factors.0.clone(), bias, directions }
    }

    /// A factor for each of `n` sequences, `[n, 1, 1]`: drawn by libtorch's generator on the CPU, which a step has seeded.
    fn draw(&self, n: i64, mode: Mode) -> Tensor {
        let factors = Tensor::from_slice(&self.factors).to_kind(Kind::Float);
        let own = match mode {
            Mode::Train => {
                let of = self.factors.len() as i64;
                factors.index_select(0, &Tensor::randint(of, [n], (Kind::Int64, Device::Cpu)))
            }
            Mode::Eval => factors.mean(Kind::Float).expand([n], false),
        };
        own.view([-1, 1, 1]).to_device(self.bias.device())
    }

    /// `log p` of every labelled token, `[m]`, in a separate run.
    fn log_p(&self, forwards: &Forwards, factors: Option<Tensor>) -> Result<Tensor> {
        let (model, batch) = (forwards.model, forwards.batch);
        let mut hooks = DrawnHooks { drawn: self, factors: factors.map(|own| own + &self.bias) };
        let h = model.whole_pass(&batch.layout, &mut hooks)?; // [b, t, d]
        let (places, labels) = batch.targets(&batch.layout.whole());
        let on_device = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(model.device());
        let h = h.flatten(0, 1).index_select(0, &on_device(&places));
        Ok(-cross_entropy(model, &h, &on_device(&labels)))
    }
}

/// Steers towards the direction, with factors `f + b` `[b, 1, 1]`; without factors, away from it.
struct DrawnHooks<'a> {
    drawn: &'a Drawn,
    factors: Option<Tensor>,
}

impl Hooks for DrawnHooks<'_> {
    fn touches(&self, point: HookPoint, _span: &Span) -> bool {
        matches!(point, HookPoint::Residual(site) if self.drawn.directions.contains_key(&site))
    }

    fn visit(&mut self, point: HookPoint, h: Tensor, _span: &Span) -> reft_models::Result<Tensor> {
        let HookPoint::Residual(site) = point else { return Ok(h) };
        let Some(v) = self.drawn.directions.get(&site) else { return Ok(h) };
        Ok(match &self.factors {
            Some(factors) => in_f32(&h, |h| h + beside(factors, v) * v),
            None => {
                Removal::past(v, &beside(&self.drawn.bias, v))?.intervene(&h, &Subspace::Whole)?
            }
        })
    }
}

impl PairLoss for Reps {
    fn term(&self) -> Term {
        Term { name: REPS.name, weight: 1.0 }
    }

    fn steers_away(&self) -> bool {
        true
    }

    fn options(&self) -> Map<String, Value> {
        let mut options = Map::from_iter([("beta".to_owned(), json!(self.beta))]);
        if let Some(drawn) = &self.drawn {
            options.insert("steering_factors".to_owned(), json!(drawn.factors));
        }
        options
    }

    fn parameters(&self) -> Vec<Parameter> {
        let bias = |drawn: &Drawn| Parameter::new("bias", &drawn.bias);
        self.drawn.iter().map(bias).collect()
    }

    fn doses(&self) -> &[Dose] {
        if self.drawn.is_some() { &[] } else { &[Dose::WHOLE, Dose::Away] }
    }

    fn log_p(&self, forwards: &Forwards) -> Result<Vec<Tensor>> {
        let Some(drawn) = &self.drawn else {
            return Ok(forwards.outputs.iter().map(|own| log_p_of_labels(forwards, own)).collect());
        };
        let factors = drawn.draw(forwards.batch.layout.batch_size() as i64, forwards.mode);
        Ok(vec![drawn.log_p(forwards, Some(factors))?, drawn.log_p(forwards, None)?])
    }

    fn of_pairs(&self, replies: &Replies) -> [Tensor; 2] {
        let gap = gap(&(&replies.log_p - replies.ratios())); // log π_ref(c) − log π_ref(x)
        let factor = (-gap * self.beta).clamp_min(1.0).detach();
        let means = replies.means();
        let preferred = means.get(0) * factor - means.get(1);
        [-preferred.log_sigmoid(), means]
    }
}

/// Factors that steering is trained at: `2,4,6`.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors(pub Vec<f64>);

impl FromStr for Factors {
    type Err = reft_core::Error;

    fn from_str(text: &str) -> Result<Self, reft_core::Error> {
        let factor =
            |part: &str| part.trim().parse::<f64>().ok().filter(|x| x.is_finite() && *x > 0.0);
        let factors: Option<Vec<f64>> = text.split(',').map(factor).collect();
        factors.map(Self).ok_or_else(|| reft_core::Error::OptionValue {
            option: "steering_factors",
            found: format!("{text:?}"),
            expected: "numbers above 0 with commas between them, as 2,4,6",
        })
    }
}

impl Display for Factors {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let factors: Vec<String> = self.0.iter().map(f64::to_string).collect();
        f.write_str(&factors.join(","))
    }
}

reft_core::as_text!(Factors);
