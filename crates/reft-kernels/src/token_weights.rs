use std::collections::BinaryHeap;

use pulp::Arch;

use crate::exponential::exp;

/// Numbers that are compared at once: the lanes of the widest registers.
const LANES: usize = 16;

/// Which tokens may be drawn, and how evenly.
#[derive(Debug, Clone, Copy)]
pub struct Drawing {
    /// Divides the scores.
    pub temperature: f64,
    /// Only the best `k` scores and those equal to the last of them.
    pub top_k: Option<usize>,
    /// Only the best of these that together have this share of their weights (Holtzman et al. 2020); 1: all.
    pub top_p: f64,
}

/// Weights of the tokens with these scores, proportional to their probabilities after temperature, then top-k, then top-p, and their sum:
/// `w_i = exp((x_i − max x) / T)`, or 0 for a token that is left out.
///
/// Weights have the precision of f32; those below e⁻⁸⁷ are 0. Scores may be −∞, if not all of them.
///
/// # Panics
/// If the lengths differ.
pub fn token_weights(scores: &[f32], drawing: Drawing, weights: &mut [f32]) -> f64 {
    assert_eq!(scores.len(), weights.len(), "numbers are missing");
    Arch::new().dispatch(|| {
        softmax_weights(scores, drawing.temperature, weights);
        let mut sum = sum(weights);
        if let Some(k) = drawing.top_k.filter(|&k| 0 < k && k < scores.len()) {
            let least = kth_best(scores, k);
            for (weight, score) in weights.iter_mut().zip(scores) {
                *weight = if *score < least { 0.0 } else { *weight };
            }
            sum = self::sum(weights);
        }
        if drawing.top_p < 1.0 {
            leave_out_tail(scores, (1.0 - drawing.top_p) * sum, weights);
            sum = self::sum(weights);
        }
        sum
    })
}

/// The token whose share of the sum of the weights contains `at`, with shares in the order of the tokens; the last one with a weight if the
/// sum does not reach `at`.
pub fn drawn(weights: &[f32], at: f64) -> usize {
    const PART: usize = 16 * LANES;
    Arch::new().dispatch(|| {
        let mut before = 0.0;
        for (part, own) in weights.chunks(PART).enumerate() {
            let of_part = sum(own);
            if at < before + of_part {
                let mut cumulated = before;
                for (i, weight) in own.iter().enumerate() {
                    cumulated += f64::from(*weight);
                    if at < cumulated {
                        return part * PART + i;
                    }
                }
            }
            before += of_part;
        }
        weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0)
    })
}

#[inline(always)]
fn softmax_weights(scores: &[f32], temperature: f64, weights: &mut [f32]) {
    let temperature = temperature.clamp(1e-30, 1e30) as f32; // so that neither 0 / 0 nor ∞ / ∞ comes about
    let (parts, rest) = scores.as_chunks::<LANES>();
    let mut best = [f32::NEG_INFINITY; LANES];
    for part in parts {
        for (best, score) in best.iter_mut().zip(part) {
            *best = if *score > *best { *score } else { *best };
        }
    }
    let best = best.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    for (weight, score) in weights.iter_mut().zip(scores) {
        let x = (score - best) / temperature;
        *weight = if x < -87.0 { 0.0 } else { exp(x) };
    }
}

#[inline(always)]
fn sum(weights: &[f32]) -> f64 {
    let (parts, rest) = weights.as_chunks::<LANES>();
    let mut sums = [0.0f64; LANES];
    for part in parts {
        for (sum, weight) in sums.iter_mut().zip(part) {
            *sum += f64::from(*weight);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().copied().map(f64::from).sum::<f64>()
}

/// The `k`-th best score.
#[inline(always)]
fn kth_best(scores: &[f32], k: usize) -> f32 {
    let (first, others) = scores.split_at(k);
    let mut best: BinaryHeap<WorstFirst> = first.iter().copied().map(WorstFirst).collect();
    let worst = |best: &BinaryHeap<WorstFirst>| best.peek().map_or(f32::NEG_INFINITY, |one| one.0);
    let mut bound = worst(&best);
    for part in others.chunks(LANES) {
        if let Ok(whole) = <&[f32; LANES]>::try_from(part)
            && whole.iter().filter(|score| **score > bound).count() == 0
        {
            continue; // most parts
        }
        for score in part {
            if *score > bound {
                best.pop();
                best.push(WorstFirst(*score));
                bound = worst(&best);
            }
        }
    }
    bound
}

/// A score, in the order in which a heap has the worst one at its top.
struct WorstFirst(f32);

impl Ord for WorstFirst {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.total_cmp(&self.0)
    }
}

impl PartialOrd for WorstFirst {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for WorstFirst {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for WorstFirst {}

/// Sets the weights of the worst tokens to 0, as long as these weights together are at most `most`. One token is always left.
#[inline(always)]
fn leave_out_tail(scores: &[f32], most: f64, weights: &mut [f32]) {
    // If all tokens were as light as these, they would still not fill `most`: they are dropped without sorting.
    let negligible = (most / weights.len() as f64) as f32;
    let (mut heavy, mut tail) = (Vec::new(), 0.0);
    for (part, weights) in weights.chunks_mut(LANES).enumerate() {
        if let Ok(whole) = <&mut [f32; LANES]>::try_from(&mut *weights) {
            let heavy = whole.iter().filter(|weight| **weight >= negligible).count();
            if heavy == 0 {
                tail += f64::from(whole.iter().sum::<f32>());
                *whole = [0.0; LANES];
                continue; // most parts
            }
        }
        for (i, weight) in weights.iter_mut().enumerate() {
            if *weight < negligible {
                tail += f64::from(std::mem::take(weight));
            } else {
                heavy.push(part * LANES + i);
            }
        }
    }
    // worst first; among equal scores the later token counts as worse, as for the best token
    heavy.sort_unstable_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(b.cmp(&a)));
    for &i in heavy.iter().take(heavy.len().saturating_sub(1)) {
        tail += f64::from(weights[i]);
        if tail > most {
            break;
        }
        weights[i] = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::noise;

    const ALL: Drawing = Drawing { temperature: 1.0, top_k: None, top_p: 1.0 };

    fn scores(n: usize) -> Vec<f32> {
        let mut scores: Vec<f32> = noise(5).map(|x| (20.0 * x).round() / 2.0).take(n).collect();
        if n > 1 {
            scores[n / 2] = f32::NEG_INFINITY;
        }
        scores
    }

    /// Probabilities by the definition, in f64: all are sorted.
    fn expected(scores: &[f32], drawing: Drawing) -> Vec<f64> {
        let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |score: &f32| (f64::from(score - best) / drawing.temperature).exp();
        let mut weights: Vec<f64> = scores.iter().map(weight).collect();
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a])); // best first; stable
        if let Some(k) = drawing.top_k.filter(|k| *k < scores.len()) {
            let least = scores[order[k - 1]];
            order.retain(|i| scores[*i] >= least);
        }
        let all: f64 = order.iter().map(|i| weights[*i]).sum();
        let mut kept = Vec::new();
        let mut cumulated = 0.0;
        for i in order {
            if cumulated < drawing.top_p * all || drawing.top_p == 1.0 || kept.is_empty() {
                kept.push(i);
            }
            cumulated += weights[i];
        }
        let all: f64 = kept.iter().map(|i| weights[*i]).sum();
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight = if kept.contains(&i) { *weight / all } else { 0.0 };
        }
        weights
    }

    fn probabilities(scores: &[f32], drawing: Drawing) -> Vec<f64> {
        let mut weights = vec![f32::NAN; scores.len()];
        let sum = token_weights(scores, drawing, &mut weights);
        weights.into_iter().map(|weight| f64::from(weight) / sum).collect()
    }

    /// Each weight has a few roundings of f32, of its exponent too.
    #[track_caller]
    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 1e-5 * e + 1e-30, "{found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn probabilities_are_those_of_the_definition() {
        for n in [1, 2, 40, 500] {
            let scores = scores(n);
            for temperature in [0.3, 1.0, 2.0] {
                for top_k in [None, Some(1), Some(7), Some(600)] {
                    for top_p in [1.0, 0.95, 0.5, 1e-9] {
                        let drawing = Drawing { temperature, top_k, top_p };
                        assert_close(&probabilities(&scores, drawing), &expected(&scores, drawing));
                    }
                }
            }
        }
    }

    #[test]
    fn temperature_divides_the_scores() {
        let scores = [2.0, 6.0, 1.0].map(f32::ln);
        let at = |temperature| probabilities(&scores, Drawing { temperature, ..ALL });
        assert_close(&at(1.0), &[2.0 / 9.0, 6.0 / 9.0, 1.0 / 9.0]);
        assert_close(&at(0.5), &[4.0 / 41.0, 36.0 / 41.0, 1.0 / 41.0]); // squares
    }

    #[test]
    fn top_k_keeps_the_best_and_what_ties_with_the_last_of_them() {
        let scores = [1.0, 4.0, 3.0, 1.0].map(f32::ln);
        let top_k = |k| probabilities(&scores, Drawing { top_k: Some(k), ..ALL });
        assert_close(&top_k(1), &[0.0, 1.0, 0.0, 0.0]);
        assert_close(&top_k(2), &[0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0]);
        assert_close(&top_k(3), &[1.0 / 9.0, 4.0 / 9.0, 3.0 / 9.0, 1.0 / 9.0]);
        assert_close(&top_k(9), &[1.0 / 9.0, 4.0 / 9.0, 3.0 / 9.0, 1.0 / 9.0]);
    }

    #[test]
    fn top_p_keeps_the_fewest_best_that_reach_it() {
        let scores = [0.15, 0.5, 0.05, 0.3].map(f32::ln);
        let top_p = |top_p| probabilities(&scores, Drawing { top_p, ..ALL });
        assert_close(&top_p(0.01), &[0.0, 1.0, 0.0, 0.0]); // one is always left
        assert_close(&top_p(0.49), &[0.0, 1.0, 0.0, 0.0]);
        assert_close(&top_p(0.6), &[0.0, 0.625, 0.0, 0.375]);
        assert_close(&top_p(0.9), &[0.15 / 0.95, 0.5 / 0.95, 0.0, 0.3 / 0.95]);
        assert_close(&top_p(1.0), &[0.15, 0.5, 0.05, 0.3]);
    }

    #[test]
    fn top_p_counts_only_what_top_k_left() {
        let scores = [0.4, 0.35, 0.25].map(f32::ln);
        let drawing = Drawing { top_k: Some(2), top_p: 0.5, ..ALL };
        // after top-k 0.4 is 0.533 of the rest, which is 0.5 and more: alone it reaches top_p; of all it is 0.4, which does not
        assert_close(&probabilities(&scores, drawing), &[1.0, 0.0, 0.0]);
    }

    #[test]
    fn extreme_temperatures_take_the_best_token_and_any_token() {
        let scores = [1.0, 2.0, f32::NEG_INFINITY];
        let mut weights = [f32::NAN; 3];
        for (temperature, expected) in
            [(f64::MIN_POSITIVE, [0.0, 1.0, 0.0]), (1e300, [1.0, 1.0, 0.0])]
        {
            token_weights(&scores, Drawing { temperature, ..ALL }, &mut weights);
            assert_eq!(weights, expected);
        }
    }

    #[test]
    fn draws_fall_into_the_shares_of_the_tokens() {
        let weights = [0.25, 0.0, 0.5, 0.25];
        let at = [0.0, 0.24, 0.25, 0.74, 0.75, 0.999];
        assert_eq!(at.map(|at| drawn(&weights, at)), [0, 0, 2, 2, 3, 3]);
        assert_eq!(drawn(&[0.5, 0.499, 0.0], 0.9999), 1); // a sum below 1 by rounding
        let mut many = vec![0.0; 1000];
        (many[3], many[700], many[999]) = (1.0, 2.0, 1.0);
        assert_eq!([0.5, 1.0, 2.9, 3.0, 4.0].map(|at| drawn(&many, at)), [3, 700, 700, 999, 999]);
    }
}
