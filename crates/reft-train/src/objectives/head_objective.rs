use std::ops::Range;

use reft_core::Parameter;
use reft_models::{TaskHead, TokenAt};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::{
    Batch, Encoding, Error, Example, Forwards, Ingredients, Labels, Metric, Objective,
    ObjectiveDeclaration, Record, Result, RowKind, Sequence, Term, Told,
};

/// The class of a text, by a head.
pub static CLASSIFICATION: ObjectiveDeclaration = OF_HEADS;

const OF_HEADS: ObjectiveDeclaration = ObjectiveDeclaration {
    name: "classification",
    rows: RowKind::Labelled,
    told: Some(Told::Class),
    compares: false,
    options: &[],
    metrics: Told::Class.metrics(),
    each,
    check: |_| Ok(()),
    build: |run| build(Told::Class, run),
};

/// A number of a text, by a head.
pub static REGRESSION: ObjectiveDeclaration = ObjectiveDeclaration {
    name: "regression",
    told: Some(Told::Number),
    metrics: Told::Number.metrics(),
    build: |run| build(Told::Number, run),
    ..OF_HEADS
};

/// How good a reply is, by a head.
pub static REWARD: ObjectiveDeclaration = ObjectiveDeclaration {
    name: "reward",
    rows: RowKind::Pairs,
    told: Some(Told::Reward),
    metrics: Told::Reward.metrics(),
    build: |run| build(Told::Reward, run),
    ..OF_HEADS
};

fn each(records: &[Record], encoding: &Encoding, labels: Option<&Labels>) -> Vec<Result<Example>> {
    labels.expect("invariant: a head tells labels").each(records, encoding)
}

fn build<'a>(told: Told, run: &'a Ingredients<'a>) -> Result<Box<dyn Objective + 'a>> {
    let head = run.head.ok_or_else(|| {
        let reason = format!("the adapter has no head, which objective {} trains", name_of(told));
        reft_models::Error::Adapter { reason }
    })?;
    Ok(Box::new(HeadObjective::new(told, head.clone())?))
}

impl Told {
    /// Its metrics, the usual one first.
    pub const fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Class => &[Metric::Accuracy, Metric::F1, Metric::Matthews],
            Self::Number => &[Metric::Pearson, Metric::Spearman, Metric::SquaredError],
            Self::Reward => &[Metric::Accuracy],
        }
    }
}

/// A head trained together with the model's adapters, as by transformers' `…ForSequenceClassification` and TRL's reward trainer.
///
/// With `z` the head's outputs `[k]` of a text, the loss is the mean over examples of
///
/// - a class `c`: `−log softmax(z)_c`; measured beside it: the share of texts whose largest output is their class
/// - a number `y`: `(z − y)²`
/// - a reward (Bradley and Terry 1952), `z_c` of the better and `z_x` of the other reply: `−log σ(z_c − z_x)`; measured: the margin
///   `z_c − z_x`, and the share of pairs in which it is above 0
///
/// The class or number of an example is its [`value`](crate::Example::value). The frozen model and the head are run without dropout.
pub struct HeadObjective {
    told: Told,
    head: TaskHead,
}

const TERMS_OF_CLASS: [Term; 2] =
    [Term { name: CLASSIFICATION.name, weight: 1.0 }, Term::measured("accuracy")];
const TERMS_OF_NUMBER: [Term; 1] = [Term { name: REGRESSION.name, weight: 1.0 }];
const TERMS_OF_REWARD: [Term; 3] =
    [Term { name: REWARD.name, weight: 1.0 }, Term::measured("margin"), Term::measured("accuracy")];

impl HeadObjective {
    /// The objective of a head that tells this kind of output.
    ///
    /// # Errors
    /// [`reft_models::Error::Adapter`] if the head's number of outputs does not fit: classes need two or more, others one.
    pub fn new(told: Told, head: TaskHead) -> Result<Self> {
        let (found, is_class) = (head.n_outputs(), told == Told::Class);
        if (found < 2) == is_class || found < 1 {
            let (name, expected) =
                (name_of(told), if is_class { "2 or more, one for each class" } else { "1" });
            let reason = format!(
                "the head has {found} outputs, {name} expects {expected}; make another head"
            );
            return Err(reft_models::Error::Adapter { reason }.into());
        }
        Ok(Self { told, head })
    }

    /// The head.
    pub fn head(&self) -> &TaskHead {
        &self.head
    }

    /// The batch rows that the head reads: one per example, of pairs both replies, one after the other.
    fn rows(&self, batch: &Batch) -> Vec<usize> {
        match self.told {
            Told::Reward => {
                batch.rows.iter().flat_map(|rows| [rows.start, rows.start + 1]).collect()
            }
            Told::Class | Told::Number => batch.rows.iter().map(|rows| rows.start).collect(),
        }
    }

    /// The head's outputs of a batch: `[n, k]`, of pairs `[2 n, 1]`.
    fn outputs(&self, forwards: &Forwards) -> Tensor {
        let batch = forwards.batch;
        let at = |row: usize| {
            let n = batch.layout.rows()[row].input_ids.len();
            TokenAt { row, token: self.head.token(n) }
        };
        let tokens: Vec<TokenAt> = self.rows(batch).into_iter().map(at).collect();
        self.head.outputs(&forwards.outputs[0].at(&tokens))
    }

    /// The labels of a batch's examples: class or number, `[n]`.
    fn values(&self, batch: &Batch) -> Result<Tensor> {
        let k = self.head.n_outputs();
        let value = |(id, value): (&String, &Option<f64>)| match (self.told, value) {
            (Told::Class, Some(c)) if c.fract() == 0.0 && (0.0..k as f64).contains(c) => Ok(*c),
            (Told::Number, Some(y)) if y.is_finite() => Ok(*y),
            (told, found) => {
                let found = found.map_or("no value".to_owned(), |value| format!("value {value}"));
                let expected = match told {
                    Told::Class => format!("a class from 0 to {}", k - 1),
                    Told::Number | Told::Reward => "a number".to_owned(),
                };
                let reason = format!("it has {found}, {} expects {expected}", name_of(told));
                Err(Error::Refused { id: id.clone(), reason })
            }
        };
        let values = batch.ids.iter().zip(&batch.values).map(value).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::from_slice(&values))
    }
}

fn name_of(told: Told) -> &'static str {
    match told {
        Told::Class => CLASSIFICATION.name,
        Told::Number => REGRESSION.name,
        Told::Reward => REWARD.name,
    }
}

impl Objective for HeadObjective {
    fn name(&self) -> &'static str {
        name_of(self.told)
    }

    fn options(&self) -> Map<String, Value> {
        let mut options = Map::from_iter([("outputs".to_owned(), json!(self.head.n_outputs()))]);
        if !self.head.names().is_empty() {
            options.insert("classes".into(), json!(self.head.names()));
        }
        options
    }

    fn parameters(&self) -> Vec<Parameter> {
        self.head.parameters()
    }

    fn wanted(&self, sequence: &Sequence) -> Range<usize> {
        let token = self.head.token(sequence.row.input_ids.len());
        token..token + 1
    }

    fn reads_logits(&self) -> bool {
        false
    }

    fn terms(&self) -> &[Term] {
        match self.told {
            Told::Class => &TERMS_OF_CLASS,
            Told::Number => &TERMS_OF_NUMBER,
            Told::Reward => &TERMS_OF_REWARD,
        }
    }

    fn counts(&self, batch: &Batch) -> Vec<f64> {
        vec![batch.rows.len() as f64; self.terms().len()]
    }

    fn metrics(&self) -> &[Metric] {
        self.told.metrics()
    }

    fn told(&self, forwards: &Forwards) -> Result<Vec<[f64; 2]>> {
        let outputs = self.outputs(forwards);
        let told = match self.told {
            Told::Class => outputs.argmax(-1, false),
            Told::Number => outputs.squeeze_dim(-1),
            Told::Reward => return Ok(Vec::new()), // its metric is a term
        };
        let told: Vec<f64> = told.to_kind(Kind::Double).try_into()?; // sync
        let right: Vec<f64> = self.values(forwards.batch)?.try_into()?;
        Ok(told.into_iter().zip(right).map(|(told, right)| [told, right]).collect())
    }

    fn classes(&self) -> usize {
        if self.told == Told::Class { self.head.n_outputs() as usize } else { 0 }
    }

    fn sums(&self, forwards: &Forwards) -> Result<Vec<Tensor>> {
        let batch = forwards.batch;
        let outputs = self.outputs(forwards); // [n, k]; of pairs [2 n, 1]
        let share = |is_right: Tensor| is_right.to_kind(Kind::Float).sum(Kind::Float);
        Ok(match self.told {
            Told::Class => {
                let classes = self.values(batch)?.to_kind(Kind::Int64).to_device(outputs.device());
                let log_p = outputs.log_softmax(-1, Kind::Float);
                let own = log_p.gather(1, &classes.unsqueeze(1), false);
                let is_right = outputs.detach().argmax(-1, false).eq_tensor(&classes);
                vec![-own.sum(Kind::Float), share(is_right)]
            }
            Told::Number => {
                let values = self.values(batch)?.to_kind(Kind::Float).to_device(outputs.device());
                vec![(outputs.squeeze_dim(-1) - values).square().sum(Kind::Float)]
            }
            Told::Reward => {
                let pairs = outputs.view([-1, 2]);
                let margin = pairs.select(1, 0) - pairs.select(1, 1);
                let loss = -margin.log_sigmoid().sum(Kind::Float);
                let margin = margin.detach();
                vec![loss, margin.sum(Kind::Float), share(margin.gt(0.0))]
            }
        })
    }
}
