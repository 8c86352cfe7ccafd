/// Number of partial sums: the lanes of the widest registers.
const LANES: usize = 16;

/// `y_i = w_i x_i / √(mean x² + ε)` of each row of `x` `[n, d]` (Zhang & Sennrich 2019), with `weight` `[d]`, into `y` `[n, d]`.
///
/// # Panics
/// If the lengths do not fit together.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f64, y: &mut [f32]) {
    let d = weight.len();
    assert!(d > 0 && x.len().is_multiple_of(d) && x.len() == y.len(), "rows are of another length");
    for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
        let mut sums = [0.0f32; LANES];
        let (parts, rest) = x.as_chunks::<LANES>();
        for part in parts {
            for (sum, x) in sums.iter_mut().zip(part) {
                *sum += x * x;
            }
        }
        let squares = sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
        let factor = 1.0 / (squares / d as f32 + eps as f32).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = x * factor * w;
        }
    }
}

/// `y = x ⊙ cos + (x with its halves exchanged) ⊙ sin` of each row of `x` `[n, d]`, into `y` `[n, d]`. This is a rotary embedding if the first
/// half of `sin` is negated.
///
/// # Panics
/// If the lengths do not fit together, or `d` is odd.
pub fn rotate_halves(x: &[f32], cos: &[f32], sin: &[f32], y: &mut [f32]) {
    let d = cos.len();
    assert!(d > 0 && d.is_multiple_of(2) && sin.len() == d, "no halves");
    assert!(x.len().is_multiple_of(d) && x.len() == y.len(), "rows are of another length");
    for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
        let (first, second) = x.split_at(d / 2);
        let exchanged = second.iter().chain(first);
        for ((((y, x), other), cos), sin) in y.iter_mut().zip(x).zip(exchanged).zip(cos).zip(sin) {
            *y = x * cos + other * sin;
        }
    }
}
