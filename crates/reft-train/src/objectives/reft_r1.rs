use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;

use reft_core::Detection;
use reft_models::{Dose, HookPoint, Hooks, Layout, Site, Span, beside};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use crate::{
    Batch, Content, Encoding, Error, Example, Forwards, Ingredients, LabelledText, Objective,
    ObjectiveDeclaration, ObjectiveOptions, Record, Result, RowKind, Sequence, Term, cross_entropy,
};

/// One direction that detects a concept and steers towards it.
pub static REFT_R1: ObjectiveDeclaration = ObjectiveDeclaration {
    name: "reft-r1",
    rows: RowKind::Labelled,
    told: None,
    compares: false,
    options: &["top_k", "latent_weight"],
    metrics: &[],
    each: |records, encoding, _| records.iter().map(|record| example(record, encoding)).collect(),
    check,
    build,
};

/// ReFT-r1: one direction `v` is trained to detect a concept and to steer towards it (Wu et al. 2025, arXiv:2501.17148, AxBench).
///
/// The latents of a text's tokens at a site are `a_t = relu(vᵀ h_t)`; `a` is the mean of the `k` largest. The loss is the sum of
///
/// - the next-token loss of the texts with the concept, whose hidden states at the site are `h + a v` (at every token), and
/// - `λ` times the share of the run that is done, times the mean over texts of a penalty: for a text with the concept, the mean over tokens
///   of the latents that are not among the largest; for a text without it, of all latents.
///
/// AxBench sums the second part over a batch, so its weight is `λ` divided by the batch size. Before each step `v` is scaled to length 1, and
/// its gradient made orthogonal to it. Each site has its own direction; it reads hidden states already steered at the sites below.
///
/// If no token has a latent above 0 at the start, the gradient is 0, and AxBench's formula never moves `v`. Here `v` is negated then, in the
/// first step.
///
/// The forward is the objective's own: every step computes all of it, and activations are kept until the backward.
#[derive(Debug)]
struct ReftR1 {
    directions: BTreeMap<Site, Tensor>, // [d] each
    top_k: usize,
    share: Cell<f64>,
    /// From a run's first step until every direction has had a gradient.
    is_start: Cell<bool>,
    terms: [Term; 3],
}

impl ReftR1 {
    /// The objective that trains these directions, `[d]` each: the parameters of a steering adapter.
    fn new(options: &ObjectiveOptions, directions: BTreeMap<Site, Tensor>) -> Self {
        let weight = options.latent_weight.unwrap_or(0.03);
        let terms = [
            Term { name: "next-token", weight: 1.0 },
            Term { name: "latents", weight },
            Term::measured("detection"),
        ];
        let (share, is_start) = (Cell::new(0.0), Cell::new(false));
        Self { directions, top_k: options.top_k.unwrap_or(8), share, is_start, terms }
    }
}

/// Its examples: texts with the concept (value 1) are learned whole; texts without it (value 0) have no labels.
fn example(record: &Record, encoding: &Encoding) -> Result<Example> {
    let (text, is_shown) = text_and_concept(record)?;
    let sequences = vec![encoding.labelled(record, text)?];
    let value = Some(f64::from(u8::from(is_shown)));
    let mut example = Example { id: record.id.clone(), sequences, value };
    if is_shown {
        example.label_all();
        if example.length() < 2 {
            return Err(record.refused("it has one token, and none to predict behind it"));
        }
    }
    Ok(example)
}

/// Checks that there are texts with the concept and texts without it.
fn check(examples: &[Example]) -> Result<()> {
    for (value, what) in [(1.0, "with the concept (1)"), (0.0, "without the concept (0)")] {
        if !examples.iter().any(|example| example.value == Some(value)) {
            let reason = format!("no row is {what}; a direction detects by texts of both kinds");
            return Err(Error::Labels { reason });
        }
    }
    Ok(())
}

fn build<'a>(run: &'a Ingredients<'a>) -> Result<Box<dyn Objective + 'a>> {
    let directions = run.directions(REFT_R1.name)?;
    Ok(Box::new(ReftR1::new(run.options, directions)))
}

/// The text of a row, and whether it shows the concept.
fn text_and_concept(record: &Record) -> Result<(&LabelledText, bool)> {
    let Content::Labelled { text, label } = &record.content else {
        return Err(record.refused("the row has no concept; give {\"text\", \"concept\": 0 or 1}"));
    };
    match label.as_str() {
        "1" | "1.0" | "true" => Ok((text, true)),
        "0" | "0.0" | "false" => Ok((text, false)),
        other => Err(record.refused(format!(
            "its concept is {other:?}, expected 1 for a text with the concept, 0 for one without it"
        ))),
    }
}

impl Objective for ReftR1 {
    fn name(&self) -> &'static str {
        REFT_R1.name
    }

    fn options(&self) -> Map<String, Value> {
        let options =
            [("top_k", json!(self.top_k)), ("latent_weight", json!(self.terms[1].weight))];
        options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn progress(&self, share: f64) {
        self.share.set(share);
        self.is_start.set(self.is_start.get() || share == 0.0);
    }

    /// Gradients are summed over all processes, so all of them negate a direction or none does.
    fn before_step(&self) {
        let _guard = tch::no_grad_guard();
        let mut is_start = false;
        for v in self.directions.values() {
            let mut v = v.shallow_clone();
            _ = v.g_div_(&(v.norm() + f64::from(f32::EPSILON)));
            let mut gradient = v.grad();
            if !gradient.defined() {
                continue;
            }
            if self.is_start.get() && gradient.count_nonzero(None).int64_value(&[]) == 0 {
                _ = v.neg_();
                is_start = true;
            }
            gradient -= gradient.dot(&v) * &v;
        }
        self.is_start.set(is_start);
    }

    /// All tokens: each has a latent.
    fn wanted(&self, sequence: &Sequence) -> Range<usize> {
        0..sequence.row.input_ids.len()
    }

    fn doses(&self) -> &[Dose] {
        &[]
    }

    fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Target tokens; texts; texts.
    fn counts(&self, batch: &Batch) -> Vec<f64> {
        let texts = batch.rows.len() as f64;
        vec![batch.n_labelled().iter().sum::<i64>() as f64, texts, texts]
    }

    fn sums(&self, forwards: &Forwards) -> Result<Vec<Tensor>> {
        let (model, batch) = (forwards.model, forwards.batch);
        let (layout, device) = (&batch.layout, model.device());
        let shown: Vec<f32> =
            batch.values.iter().map(|value| value.unwrap_or(0.0) as f32).collect();
        let mut hooks = DetectingHooks {
            directions: &self.directions,
            mask: own_tokens(layout, device),
            shown: Tensor::from_slice(&shown).to_device(device),
            top_k: self.top_k as i64,
            latents: Vec::new(),
            largest: Vec::new(),
        };
        let h = model.whole_pass(layout, &mut hooks)?; // [b, t, d]
        let (places, labels) = batch.targets(&layout.whole());
        let on_device = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(device);
        let predicted = match labels.is_empty() {
            true => Tensor::zeros([], (Kind::Float, device)),
            false => {
                let h = h.flatten(0, 1).index_select(0, &on_device(&places));
                cross_entropy(model, &h, &on_device(&labels)).sum(Kind::Float)
            }
        };
        let sum = |of_sites: &[Tensor]| Tensor::stack(of_sites, 0).sum(Kind::Float);
        let signs = &hooks.shown * 2.0 - 1.0; // how far the largest latents tell the two kinds apart
        let told = Tensor::stack(&hooks.largest, 0).detach() * signs;
        Ok(vec![predicted, sum(&hooks.latents) * self.share.get(), told.sum(Kind::Float)])
    }
}

/// 1 at the tokens of rows, `[b, t]`, 0 at padding.
fn own_tokens(layout: &Layout, device: Device) -> Tensor {
    let row = |row: usize| {
        let own = layout.columns(row);
        (0..layout.width()).map(move |column| f32::from(u8::from(own.contains(&column))))
    };
    let mask: Vec<f32> = (0..layout.batch_size()).flat_map(row).collect();
    let size = [layout.batch_size() as i64, layout.width() as i64];
    Tensor::from_slice(&mask).view(size).to_device(device)
}

/// Reads latents, and steers the texts with the concept by them.
struct DetectingHooks<'a> {
    directions: &'a BTreeMap<Site, Tensor>,
    mask: Tensor,  // [b, t]
    shown: Tensor, // [b]
    top_k: i64,
    /// For each site, the mean of the latents to be driven to 0, `[b]`.
    latents: Vec<Tensor>,
    /// For each site, the mean of the largest latents, `[b]`.
    largest: Vec<Tensor>,
}

impl Hooks for DetectingHooks<'_> {
    fn touches(&self, point: HookPoint, _span: &Span) -> bool {
        matches!(point, HookPoint::Residual(site) if self.directions.contains_key(&site))
    }

    fn visit(&mut self, point: HookPoint, h: Tensor, _span: &Span) -> reft_models::Result<Tensor> {
        let HookPoint::Residual(site) = point else { return Ok(h) };
        let Some(v) = self.directions.get(&site) else { return Ok(h) };
        let found = Detection::of(&h, v, &beside(&self.mask, &h), self.top_k)?;
        let shown = beside(&self.shown, &h);
        let latents = found.others * &shown + found.all * (1.0 - &shown);
        self.latents.push(beside(&latents, &self.shown));
        let steered = Detection::steered(&h, v, &(&found.largest * &shown));
        self.largest.push(beside(&found.largest, &self.shown));
        Ok(steered)
    }
}
