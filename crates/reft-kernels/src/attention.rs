use std::ops::Range;
use std::sync::Mutex;

use pulp::{Arch, Simd, WithSimd};

use crate::exponential::exp;
use crate::rows::{Rows, Scratch};
use crate::threads::share_out;

/// Keys and values of several texts, as a cache holds them: `heads` times `capacity` vectors of `head_dim` numbers for each text.
#[derive(Debug, Clone, Copy)]
pub struct KeysAndValues<'a> {
    /// `[texts · heads · capacity, head_dim]`; the last columns of the last head may be missing.
    pub keys: Rows<'a>,
    /// The values, in the same form.
    pub values: Rows<'a>,
    /// Key heads of a text.
    pub heads: usize,
    /// Columns of a key head.
    pub capacity: usize,
    /// Numbers of a key.
    pub head_dim: usize,
}

/// Vectors that are read together.
const BESIDE: usize = 4;
/// Number of multiplications for which another thread is worth its start.
const WORTH_A_THREAD: usize = 1 << 17;

/// `softmax(scale · q Kᵀ) V` (Vaswani et al. 2017) for one query of each head of each text: `q` `[texts, n_h, head_dim]`, into `y` of the same size.
///
/// `seen` are the columns whose keys the queries of each text see. The heads of a text share its key heads in order (grouped queries). Keys and
/// values are read in place. Scores and sums are in f32. The scores and sums of a text do not depend on the other texts.
///
/// # Panics
/// If the lengths do not fit together, or a text sees no key.
pub fn attention(
    cache: KeysAndValues,
    q: &[f32],
    seen: &[Range<usize>],
    scale: f32,
    y: &mut [f32],
    threads: usize,
) {
    let KeysAndValues { heads, capacity, head_dim, .. } = cache;
    let of_head = q.len() / (seen.len() * heads).max(1);
    assert!(q.len() == y.len() && q.len() == of_head * seen.len() * heads, "q or y is too short");
    assert!(head_dim > 0 && of_head.is_multiple_of(head_dim), "no whole number of queries");
    assert!(seen.iter().all(|seen| !seen.is_empty() && seen.end <= capacity), "no such columns");
    let multiplications: usize = seen.iter().map(|seen| 2 * seen.len() * of_head * heads).sum();
    let threads = threads.min(multiplications / WORTH_A_THREAD + 1).min(seen.len() * heads);
    let work = q.chunks_exact(of_head).zip(y.chunks_exact_mut(of_head)).enumerate();
    share_out(threads, &Mutex::new(work), HeadScratch::default, |scratch, (i, (q, y))| {
        let head = Head { cache, first: i * capacity, seen: seen[i / heads].clone(), q, scale, y };
        Arch::new().dispatch(OfHead { head, scratch });
    });
}

/// A key head of a text with its queries.
struct Head<'a> {
    cache: KeysAndValues<'a>,
    first: usize,
    seen: Range<usize>,
    q: &'a [f32],
    scale: f32,
    y: &'a mut [f32],
}

#[derive(Default)]
struct HeadScratch {
    vectors: [Scratch; BESIDE],
    scores: Vec<f32>, // [queries, columns]
}

struct OfHead<'a, 's> {
    head: Head<'a>,
    scratch: &'s mut HeadScratch,
}

impl WithSimd for OfHead<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Head { cache, first, seen, q, scale, y } = self.head;
        let HeadScratch { vectors, scores } = self.scratch;
        let (d, n) = (cache.head_dim, seen.len());
        scores.resize(q.len() / d * n, 0.0);
        let columns = first + seen.start..first + seen.end;
        each_few(&cache.keys, columns.clone(), d, vectors, |at, keys| {
            for (q, scores) in q.chunks_exact(d).zip(scores.chunks_exact_mut(n)) {
                match *keys {
                    [a, b, c, e] => {
                        let dots = dots(simd, q, [a, b, c, e]);
                        for (score, dot) in scores[at..at + BESIDE].iter_mut().zip(dots) {
                            *score = dot * scale;
                        }
                    }
                    _ => {
                        for (score, key) in scores[at..].iter_mut().zip(keys) {
                            *score = dots(simd, q, [*key])[0] * scale;
                        }
                    }
                }
            }
        });
        scores.chunks_exact_mut(n).for_each(softmax);
        y.fill(0.0);
        each_few(&cache.values, columns, d, vectors, |at, values| {
            for (y, weights) in y.chunks_exact_mut(d).zip(scores.chunks_exact(n)) {
                let weights = &weights[at..];
                match *values {
                    [a, b, c, e] => {
                        let weights = [weights[0], weights[1], weights[2], weights[3]];
                        add_weighted(simd, weights, [a, b, c, e], y);
                    }
                    _ => {
                        for (weight, value) in weights.iter().zip(values) {
                            add_weighted(simd, [*weight], [*value], y);
                        }
                    }
                }
            }
        });
    }
}

/// Reads rows of a matrix, [`BESIDE`] at a time: `see` gets the number of the first of them, from 0 on.
#[inline(always)]
fn each_few(
    matrix: &Rows,
    rows: Range<usize>,
    columns: usize,
    [a, b, c, d]: &mut [Scratch; BESIDE],
    mut see: impl FnMut(usize, &[&[f32]]),
) {
    let n = rows.len();
    for at in (0..n).step_by(BESIDE) {
        let first = rows.start + at;
        let there = BESIDE.min(n - at);
        let row = |i: usize| first + i.min(there - 1);
        let few = [
            matrix.row(row(0), columns, a),
            matrix.row(row(1), columns, b),
            matrix.row(row(2), columns, c),
            matrix.row(row(3), columns, d),
        ];
        see(at, &few[..there]);
    }
}

/// The products of a query with some keys.
#[inline(always)]
fn dots<S: Simd, const N: usize>(simd: S, q: &[f32], keys: [&[f32]; N]) -> [f32; N] {
    let (q, q_end) = S::as_simd_f32s(q);
    let mut sums = [simd.splat_f32s(0.0); N];
    let (parts, ends) = split::<S, N>(keys);
    for (i, q) in q.iter().enumerate() {
        for (sum, key) in sums.iter_mut().zip(&parts) {
            *sum = simd.mul_add_e_f32s(*q, key[i], *sum);
        }
    }
    let mut dots = [0.0; N];
    for ((dot, sum), end) in dots.iter_mut().zip(sums).zip(ends) {
        *dot = simd.reduce_sum_f32s(sum) + q_end.iter().zip(end).map(|(q, k)| q * k).sum::<f32>();
    }
    dots
}

/// `y += Σ weight · value`.
#[inline(always)]
fn add_weighted<S: Simd, const N: usize>(
    simd: S,
    weights: [f32; N],
    values: [&[f32]; N],
    y: &mut [f32],
) {
    let (y, y_end) = S::as_mut_simd_f32s(y);
    let (parts, ends) = split::<S, N>(values);
    let mut broad = [simd.splat_f32s(0.0); N];
    for (broad, weight) in broad.iter_mut().zip(weights) {
        *broad = simd.splat_f32s(weight);
    }
    for (i, y) in y.iter_mut().enumerate() {
        for (weight, value) in broad.iter().zip(&parts) {
            *y = simd.mul_add_e_f32s(*weight, value[i], *y);
        }
    }
    for (i, y) in y_end.iter_mut().enumerate() {
        for (weight, end) in weights.iter().zip(&ends) {
            *y += weight * end[i];
        }
    }
}

/// Vectors in whole registers, and the remaining numbers of each. `array::map` would be called, and its results copied, for every few vectors.
#[inline(always)]
fn split<S: Simd, const N: usize>(vectors: [&[f32]; N]) -> ([&[S::f32s]; N], [&[f32]; N]) {
    let (mut parts, mut ends): ([&[S::f32s]; N], [&[f32]; N]) = ([&[]; N], [&[]; N]);
    for ((part, end), vector) in parts.iter_mut().zip(&mut ends).zip(vectors) {
        (*part, *end) = S::as_simd_f32s(vector);
    }
    (parts, ends)
}

/// Scores become weights: `exp(s − max s) / Σ exp(s − max s)`.
#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let largest =
        scores.iter().fold(f32::NEG_INFINITY, |most, s| if *s > most { *s } else { most });
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    let factor = 1.0 / sum(scores);
    scores.iter_mut().for_each(|score| *score *= factor);
}

/// A sum in an order that a CPU computes in the lanes of its registers.
#[inline(always)]
fn sum(numbers: &[f32]) -> f32 {
    let (parts, rest) = numbers.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for part in parts {
        for (sum, number) in sums.iter_mut().zip(part) {
            *sum += number;
        }
    }
    sums.iter().chain(rest).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::noise;

    /// By the definition, in f64.
    fn expected(
        q: &[f32],
        (keys, values): (&[f32], &[f32]),
        (heads, capacity, d): (usize, usize, usize),
        seen: &[Range<usize>],
        scale: f32,
    ) -> Vec<f64> {
        let groups = q.len() / (d * seen.len() * heads);
        let queries = q.chunks_exact(d).enumerate();
        let of_query = |(i, q): (usize, &[f32])| {
            let head = i / groups;
            let rows = |all: &'_ [f32], t: usize| all[(head * capacity + t) * d..][..d].to_vec();
            let seen = seen[head / heads].clone();
            let score = |t: usize| {
                let dot: f64 =
                    q.iter().zip(rows(keys, t)).map(|(q, k)| f64::from(*q) * f64::from(k)).sum();
                (dot * f64::from(scale)).exp()
            };
            let weights: Vec<f64> = seen.clone().map(score).collect();
            let all: f64 = weights.iter().sum();
            let mut y = vec![0.0; d];
            for (weight, t) in weights.iter().zip(seen) {
                for (y, v) in y.iter_mut().zip(rows(values, t)) {
                    *y += weight / all * f64::from(v);
                }
            }
            y
        };
        queries.flat_map(of_query).collect()
    }

    /// Sums of 64 products in f32 have errors of some roundings of numbers up to 1.
    #[test]
    fn each_query_sees_the_keys_of_its_text() {
        for (texts, heads, groups, d) in [(1, 3, 3, 64), (3, 2, 1, 16), (2, 1, 4, 20), (2, 2, 2, 5)]
        {
            let capacity = 37;
            let n = texts * heads * capacity * d;
            let bf16 = |seed| -> Vec<u16> {
                noise(seed).take(n).map(|x| half::bf16::from_f32(3.0 * x).to_bits()).collect()
            };
            let (keys, values) = (bf16(1), bf16(2));
            let f32 = |bits: &[u16]| -> Vec<f32> {
                bits.iter().map(|bits| half::bf16::from_bits(*bits).to_f32()).collect()
            };
            let own = (f32(&keys), f32(&values));
            let q: Vec<f32> = noise(3).take(texts * heads * groups * d).collect();
            let seen = [0..37, 5..12, 1..2];
            let seen = &seen[..texts];
            let size = (heads, capacity, d);
            let expected = expected(&q, (&own.0, &own.1), size, seen, 0.3);
            let mut first = None;
            for (keys, values) in
                [(Rows::F32(&own.0), Rows::F32(&own.1)), (Rows::Bf16(&keys), Rows::Bf16(&values))]
            {
                let cache = KeysAndValues { keys, values, heads, capacity, head_dim: d };
                for threads in [1, 2] {
                    let mut y = vec![f32::NAN; q.len()];
                    attention(cache, &q, seen, 0.3, &mut y, threads);
                    for (i, (y, expected)) in y.iter().zip(&expected).enumerate() {
                        assert!((f64::from(*y) - expected).abs() < 4e-6, "{y} {expected} at {i}");
                    }
                    assert_eq!(*first.get_or_insert_with(|| y.clone()), y);
                }
            }
            // alone, a text has the same result to the last bit
            let of_text = q.len() / texts;
            for text in 0..texts {
                let part = text * heads * capacity * d..(text + 1) * heads * capacity * d;
                let (keys, values) = (Rows::F32(&own.0[part.clone()]), Rows::F32(&own.1[part]));
                let cache = KeysAndValues { keys, values, heads, capacity, head_dim: d };
                let mut y = vec![f32::NAN; of_text];
                let own = text * of_text..(text + 1) * of_text;
                attention(cache, &q[own.clone()], &seen[text..=text], 0.3, &mut y, 1);
                assert_eq!(Some(&y[..]), first.as_deref().map(|all| &all[own]));
            }
        }
    }

    #[test]
    fn numbers_that_are_none_come_through() {
        let values = [1.0f32; 12];
        for wrong in [f32::NAN, f32::INFINITY] {
            let mut keys = [0.5; 12];
            keys[6] = wrong;
            let (keys, values) = (Rows::F32(&keys), Rows::F32(&values));
            let cache = KeysAndValues { keys, values, heads: 1, capacity: 3, head_dim: 4 };
            let mut y = [0.0; 4];
            let mut seeing = |seen: Range<usize>| {
                attention(cache, &[1.0; 4], std::slice::from_ref(&seen), 1.0, &mut y, 1);
                y
            };
            assert!(seeing(0..3).iter().all(|y| y.is_nan()));
            assert_eq!(seeing(0..1), [1.0; 4]);
        }
    }
}
