/// `eˣ` for `x ≤ 88`, to two roundings in f32, without branches: a loop over it is vectorised. Below −87 it is `e⁻⁸⁷`; NaN stays NaN.
///
/// `eˣ = 2ⁿ eʳ` with `n` the whole number next to `x / ln 2`, and `eʳ` by a polynomial of degree 6 for `|r| ≤ ln 2 / 2` (Cephes, `expf`).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUNDS: f32 = 12_582_912.0; // 1.5 · 2²³: a sum with it is a whole number
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4); // the first part has 9 bits, so n times it is exact
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUNDS;
    let n = shifted - ROUNDS;
    let r = x - n * LN_2.0 - n * LN_2.1;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = p * r + coefficient;
    }
    let of_r = p * r * r + r + 1.0;
    // the low bits of `shifted` are n: it becomes the exponent
    of_r * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_exponential_to_two_roundings() {
        let mut worst = 0.0f64;
        for i in 0..=1_750_000 {
            let x = i as f32 * 1e-4 - 87.0;
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - expected).abs() / expected);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON) && worst > 0.0, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!((exp(-1e30), exp(f32::NEG_INFINITY)), (exp(-87.0), exp(-87.0)));
        assert!(exp(-87.0) < 2e-38 && exp(f32::NAN).is_nan());
    }
}
