use reft_models::Adapter;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::Result;
use crate::batches::Batch;
use crate::computation::Computation;
use crate::dataset::{Example, IGNORE_INDEX};
use crate::model::Model;
use crate::reuse::FrozenStore;

/// How many of some examples are answered as expected.
///
/// With an interchange adapter and counterfactual examples this is the interchange intervention accuracy (IIA).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Examples answered as expected.
    pub hits: usize,
    /// Examples.
    pub total: usize,
}

impl Accuracy {
    /// The share of hits; 0 without examples.
    pub fn share(self) -> f64 {
        if self.total == 0 { 0.0 } else { self.hits as f64 / self.total as f64 }
    }

    /// The 95 % interval of the share (Wilson 1927): which shares of a population of such examples are compatible with the sample.
    ///
    /// `(p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)` with `z = 1.96`. Unlike `p ± z √(p(1−p)/n)` it has a width at 0 and at 1.
    pub fn interval(self) -> (f64, f64) {
        const Z: f64 = 1.959_963_984_540_054;
        if self.total == 0 {
            return (0.0, 1.0);
        }
        let (p, n) = (self.share(), self.total as f64);
        let centre = p + Z * Z / (2.0 * n);
        let spread = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + Z * Z / n;
        (((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0))
    }
}

/// Counts the examples whose every target is the model's likeliest answer: of `answers`, or of all if none are named. With `frozen`,
/// what the frozen model alone decides is taken from there.
///
/// # Errors
/// What the model or an adapter refuses.
pub fn accuracy(
    model: &dyn Model,
    adapters: &[&dyn Adapter],
    examples: &[Example],
    batch_size: usize,
    answers: &[i64],
    frozen: Option<&mut FrozenStore>,
) -> Result<Accuracy> {
    let given = likeliest(model, adapters, examples, batch_size, answers, frozen)?;
    let is_right = |(example, given): &(&Example, Vec<i64>)| targets(example).eq(given.clone());
    let hits = examples.iter().zip(given).filter(is_right).count();
    Ok(Accuracy { hits, total: examples.len() })
}

/// What the model answers at every target of each example: the likeliest of `answers`, or of all if none are named.
///
/// # Errors
/// What the model or an adapter refuses.
pub fn likeliest(
    model: &dyn Model,
    adapters: &[&dyn Adapter],
    examples: &[Example],
    batch_size: usize,
    answers: &[i64],
    mut frozen: Option<&mut FrozenStore>,
) -> Result<Vec<Vec<i64>>> {
    let answers = Tensor::from_slice(answers).to_device(model.device());
    let mut given = Vec::with_capacity(examples.len());
    for examples in examples.chunks(batch_size.max(1)) {
        let batch = Batch::collate(examples, 0)?;
        let found = likeliest_of(model, adapters, &batch, &answers, frozen.as_deref_mut())?;
        let mut found = found.into_iter();
        given.extend(
            examples.iter().map(|example| found.by_ref().take(targets(example).count()).collect()),
        );
    }
    Ok(given)
}

/// The likeliest of `answers` `[a]`, or of all tokens if `a` is 0, at every target of a batch.
pub(crate) fn likeliest_of(
    model: &dyn Model,
    adapters: &[&dyn Adapter],
    batch: &Batch,
    answers: &Tensor,
    frozen: Option<&mut FrozenStore>,
) -> Result<Vec<i64>> {
    let some = (answers.numel() > 0).then_some(answers);
    let (logits, _) = model.target_logits(Computation::new(adapters, batch, frozen), some)?;
    let found = logits.argmax(-1, false);
    let found = some.map_or(found.shallow_clone(), |answers| answers.index_select(0, &found));
    Ok(found.try_into()?) // sync
}

/// The labels of an example that count.
pub(crate) fn targets(example: &Example) -> impl Iterator<Item = i64> {
    example.labels.iter().skip(1).copied().filter(|&label| label != IGNORE_INDEX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out by hand from the formula, with z = 1.96: 8 of 10 → (0.490, 0.943), 0 of 20 → (0, 0.161).
    #[test]
    fn intervals_are_wilson_s() {
        for (hits, total, low, high) in
            [(8, 10, 0.4902, 0.9433), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0)]
        {
            let (found_low, found_high) = Accuracy { hits, total }.interval();
            // the numbers above have four digits
            assert!((found_low - low).abs() < 1e-4, "{hits} of {total}: {found_low}");
            assert!((found_high - high).abs() < 1e-4, "{hits} of {total}: {found_high}");
        }
    }
}
