use pulp::Arch;

use crate::exponential::exp;

/// Number of partial sums: the lanes of the widest registers.
const LANES: usize = 16;

/// `y_i = w_i x_i / √(mean x² + ε)` of each row of `x` `[n, d]` (Zhang & Sennrich 2019), with `weight` `[d]`, into `y` `[n, d]`.
///
/// # Panics
/// If the lengths do not fit together.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f64, y: &mut [f32]) {
    let d = weight.len();
    assert!(d > 0 && x.len().is_multiple_of(d) && x.len() == y.len(), "rows are of another length");
    Arch::new().dispatch(|| {
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
    });
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

/// `y_i = g_i σ(g_i) u_i`, with the logistic function σ: the gate of a SwiGLU (Shazeer 2020), to four roundings in f32.
///
/// # Panics
/// If the lengths differ.
pub fn silu_gate(gate: &[f32], up: &[f32], y: &mut [f32]) {
    assert!(gate.len() == up.len() && up.len() == y.len(), "numbers are missing");
    Arch::new().dispatch(|| {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            let e = exp(-g.abs());
            let of_negative = if *g < 0.0 { e } else { 1.0 };
            *y = g * of_negative / (1.0 + e) * u;
        }
    });
}

/// Rounds numbers to bf16, to the nearest and ties to even: `y` gets the bits.
///
/// # Panics
/// If the lengths differ.
pub fn round_to_bf16(x: &[f32], y: &mut [u16]) {
    assert_eq!(x.len(), y.len(), "numbers are missing");
    Arch::new().dispatch(|| {
        for (y, x) in y.iter_mut().zip(x) {
            let bits = x.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
            let kept = if x.is_nan() { bits | 0x40_0000 } else { rounded };
            *y = (kept >> 16) as u16;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::noise;

    #[test]
    fn gates_are_those_of_the_definition() {
        let gate: Vec<f32> = noise(1).map(|x| 30.0 * x * x * x).take(1000).collect();
        let gate = [&gate[..], &[0.0, -1e30, 1e30, f32::NEG_INFINITY, f32::NAN]].concat();
        let up: Vec<f32> = noise(2).take(gate.len()).collect();
        let mut y = vec![f32::NAN; gate.len()];
        silu_gate(&gate, &up, &mut y);
        for ((y, g), u) in y.iter().zip(&gate).zip(&up).take(1001) {
            let (g, u) = (f64::from(*g), f64::from(*u));
            let expected = g / (1.0 + (-g).exp()) * u;
            let tolerance = 4.0 * f64::from(f32::EPSILON) * expected.abs();
            assert!((f64::from(*y) - expected).abs() <= tolerance, "{y} {expected}");
        }
        let [.., of_least, of_most, of_infinite, of_nan] = y[..] else { unreachable!() };
        assert!(of_least.abs() < 1e-6 && of_most == 1e30 * up[1002] && of_nan.is_nan());
        assert!(of_infinite.is_infinite() || of_infinite.is_nan());
    }

    #[test]
    fn numbers_are_rounded_as_by_half() {
        let wide = noise(3).take(2000).map(|x| x * 1e30).chain(noise(4).take(2000));
        let ties = (0..200).map(|i| f32::from_bits(0x3f80_0000 + i * 0x4000));
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, 1e-40];
        let x: Vec<f32> = wide.chain(ties).chain(special).collect();
        let mut y = vec![0; x.len()];
        round_to_bf16(&x, &mut y);
        for (x, y) in x.iter().zip(y) {
            assert_eq!(y, half::bf16::from_f32(*x).to_bits(), "{x}");
        }
    }
}
