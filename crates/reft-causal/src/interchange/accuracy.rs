use reft_train::{Example, IGNORE_INDEX};
use serde::{Deserialize, Serialize};

/// How many of some examples are answered as expected.
///
/// For counterfactuals run with their swaps, this is the interchange intervention accuracy (IIA).
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

/// Splits the answers at all targets into the answers of each example.
pub(crate) fn per_example(
    examples: &[Example],
    answers: &mut impl Iterator<Item = i64>,
) -> Vec<Vec<i64>> {
    let of_one = |example| answers.take(targets(example).count()).collect();
    examples.iter().map(of_one).collect()
}

/// Whether an example is answered as expected at every target.
pub(crate) fn is_right(example: &Example, given: &[i64]) -> bool {
    targets(example).eq(given.iter().copied())
}

/// The labels of an example that count.
fn targets(example: &Example) -> impl Iterator<Item = i64> {
    example.labels().iter().skip(1).copied().filter(|&label| label != IGNORE_INDEX)
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
