//! A block's norms and rotations for the few rows of decoding: there, each libtorch operation takes longer to launch than to compute.

use std::borrow::Cow;
use std::ops::Range;

use reft_kernels::{KeysAndValues, attention, rms_norm, rotate_halves, silu_gate};
use tch::Tensor;

use crate::weights::quick_products::{buffers, has_its_products_recorded, read, threads, written};

/// Most numbers of a tensor for which these functions are faster.
const MOST: usize = 1 << 15;

/// The numbers of a small, contiguous tensor on a CPU without autograd, in f32.
fn few(x: &Tensor) -> Option<Cow<'_, [f32]>> {
    if x.numel() > MOST || has_its_products_recorded(x) {
        return None;
    }
    read(x)
}

/// [`Tensor::rms_norm`] of the last dimension, for one token of each row, `[.., 1, d]`; `None`: libtorch must compute it.
pub(crate) fn normed(x: &Tensor, weight: &Tensor, eps: f64) -> Option<Tensor> {
    let size = x.size();
    if !matches!(size[..], [.., 1, d] if weight.size() == [d]) || weight.kind() != x.kind() {
        return None;
    }
    let (numbers, weight) = (few(x)?, few(weight)?);
    Some(written(&size, x.kind(), |y| rms_norm(&numbers, &weight, eps, y)))
}

/// `x ⊙ cos + (x with its halves exchanged) ⊙ sin` of `x` `[b, n, 1, d]` with `cos` and `sin` `[1 or b, 1, 1, d]`; `None`: libtorch must
/// compute it.
pub(crate) fn rotated(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Option<Tensor> {
    let (x_size, size) = (x.size(), cos.size());
    let (&[b, n, 1, d], &[turned, 1, 1, width]) = (&x_size[..], &size[..]) else { return None };
    if width != d || (turned != 1 && turned != b) || cos.kind() != x.kind() {
        return None;
    }
    let (numbers, cos, sin) = (few(x)?, few(cos)?, few(sin)?);
    let (d, of_row) = (d as usize, (n * d) as usize);
    Some(written(&x_size, x.kind(), |y| {
        let rows = numbers.chunks_exact(of_row).zip(y.chunks_exact_mut(of_row));
        for (row, (x, y)) in rows.enumerate() {
            let angles = if turned == 1 { 0..d } else { row * d..(row + 1) * d };
            rotate_halves(x, &cos[angles.clone()], &sin[angles], y);
        }
    }))
}

/// `silu(gate) ⊙ up` of one token of each row, `[b, 1, d]`; `None`: libtorch must compute it.
pub(crate) fn silu_gated(gate: &Tensor, up: &Tensor) -> Option<Tensor> {
    let size = gate.size();
    if !matches!(size[..], [_, 1, _]) || up.size() != size {
        return None;
    }
    let kind = gate.kind();
    let (gate, up) = (few(gate)?, few(up)?);
    Some(written(&size, kind, |y| silu_gate(&gate, &up, y)))
}

/// `softmax(scale · q kᵀ) v` of one token of each row, `q` `[b, n_h, 1, d_h]`, which sees some columns of its row's keys and values
/// `[b, n_kv, t, d_h]`. Keys and values are read in place. `None`: libtorch must compute it.
pub(crate) fn attended(
    q: &Tensor,
    (k, v): (&Tensor, &Tensor),
    seen: &[Range<usize>],
    scale: f64,
) -> Option<Tensor> {
    if [q, k, v].into_iter().any(has_its_products_recorded) || q.kind() != k.kind() {
        return None;
    }
    let (size, (_, heads, _, d_h)) = (q.size(), k.size4().ok()?);
    if !matches!(size[..], [_, _, 1, d] if d == d_h) || k.size() != v.size() {
        return None;
    }
    let ((keys, capacity), (values, of_values)) = (buffers(k)?, buffers(v)?);
    if capacity != of_values {
        return None;
    }
    let (heads, head_dim) = (heads as usize, d_h as usize);
    let cache = KeysAndValues { keys, values, heads, capacity, head_dim };
    let q = q.contiguous();
    let own = read(&q)?;
    Some(written(&size, q.kind(), |y| attention(cache, &own, seen, scale as f32, y, threads())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn numbers(size: &[i64], seed: f64) -> Tensor {
        let n = size.iter().product::<i64>();
        let x = Tensor::arange(n, (Kind::Float, Device::Cpu));
        ((&x * 0.7 + seed).sin() * 3.0).view(size)
    }

    const KINDS: [Kind; 3] = [Kind::Float, Kind::BFloat16, Kind::Half];

    /// Both sum the same f32 products in another order. In half precision libtorch rounds between its operations too: two or three steps.
    fn assert_close(found: &Tensor, expected: &Tensor) {
        assert_eq!((found.size(), found.kind()), (expected.size(), expected.kind()));
        let step = match found.kind() {
            Kind::BFloat16 => 2f64.powi(-8),
            Kind::Half => 2f64.powi(-11),
            _ => 1e-6,
        };
        let f64 = |x: &Tensor| x.to_kind(Kind::Double);
        let error = (f64(found) - f64(expected)).abs().max().double_value(&[]);
        let largest = f64(expected).abs().max().double_value(&[]);
        assert!(error <= 2.0 * step * largest && largest > 1.0, "{error} of {largest}");
    }

    #[test]
    fn rows_are_normed_as_libtorch_does() {
        for (kind, d) in KINDS.into_iter().flat_map(|kind| [576, 7, 50].map(|d| (kind, d))) {
            let x = numbers(&[3, 1, d], 0.3).to_kind(kind);
            let weight = numbers(&[d], 1.0).to_kind(kind);
            let found = normed(&x, &weight, 1e-5).expect("few rows");
            assert_close(&found, &x.rms_norm([d], Some(&weight), 1e-5));
        }
    }

    #[test]
    fn rows_are_turned_as_libtorch_does() {
        for (kind, turned) in KINDS.into_iter().flat_map(|kind| [1, 3].map(|n| (kind, n))) {
            let x = numbers(&[3, 4, 1, 8], 0.3).to_kind(kind);
            let cos = numbers(&[turned, 1, 1, 8], 1.0).to_kind(kind);
            let sin = numbers(&[turned, 1, 1, 8], 2.0).to_kind(kind);
            let found = rotated(&x, &cos, &sin).expect("few rows");
            assert_close(&found, &(&x * &cos + x.roll([4], [-1]) * &sin));
        }
    }

    #[test]
    fn gates_are_libtorchs() {
        for kind in KINDS {
            let gate = numbers(&[3, 1, 50], 0.3).to_kind(kind);
            let up = numbers(&[3, 1, 50], 2.0).to_kind(kind);
            assert_close(&silu_gated(&gate, &up).expect("few rows"), &(gate.silu() * &up));
            assert!(silu_gated(&gate.view([1, 3, 50]), &up.view([1, 3, 50])).is_none());
        }
    }

    /// In bf16 libtorch rounds weights before they are multiplied: 2 of its steps for numbers up to 3.
    #[test]
    fn a_token_attends_to_its_row_as_libtorch_computes_it() {
        for (kind, tolerance) in [(Kind::Float, 4e-6), (Kind::BFloat16, 3.0 / 64.0)] {
            let of_slots = |seed| numbers(&[4, 2, 9, 8], seed).to_kind(kind);
            // rows 1 to 3 of a pool's slots, seven columns of nine
            let part = |pool: &Tensor| pool.narrow(0, 1, 3).narrow(2, 0, 7);
            let (keys, values) = (of_slots(0.3), of_slots(1.0));
            let (k, v) = (part(&keys), part(&values));
            let q = numbers(&[3, 4, 1, 8], 2.0).to_kind(kind);
            let seen = [0..7, 0..3, 2..5];
            let found = attended(&q, (&k, &v), &seen, 0.2).expect("one token of each row");
            assert_eq!((found.size(), found.kind()), (vec![3, 4, 1, 8], kind));
            for (row, seen) in seen.iter().enumerate() {
                let (start, length) = (seen.start as i64, seen.len() as i64);
                let own = |x: &Tensor| {
                    let own = x.narrow(0, row as i64, 1).narrow(2, start, length);
                    own.to_kind(Kind::Double).repeat_interleave_self_int(2, 1, None)
                };
                let q = q.narrow(0, row as i64, 1).to_kind(Kind::Double);
                let weights = (q.matmul(&own(&k).transpose(2, 3)) * 0.2).softmax(-1, Kind::Double);
                let expected = weights.matmul(&own(&v));
                let found = found.narrow(0, row as i64, 1).to_kind(Kind::Double);
                let error = (found - &expected).abs().max().double_value(&[]);
                let largest = expected.abs().max().double_value(&[]);
                assert!(error <= tolerance && largest > 1.0, "{kind:?}: {error} of {largest}");
            }
            let refused =
                |q: &Tensor, k: &Tensor, v: &Tensor| attended(q, (k, v), &seen, 0.2).is_none();
            assert!(refused(&q, &k.transpose(0, 1).contiguous().transpose(0, 1), &v)); // rows are not behind each other
            assert!(refused(&q, &k, &v.contiguous())); // buffers of other lengths
            assert!(refused(&q.repeat([1, 1, 2, 1]), &k, &v)); // two tokens
            let learned = q.set_requires_grad(true);
            assert!(refused(&learned, &k, &v));
            assert!(!tch::no_grad(|| refused(&learned, &k, &v)));
        }
    }

    #[test]
    fn what_is_large_wants_a_gradient_or_is_of_another_kind_is_left_to_libtorch() {
        let weight = numbers(&[8], 1.0);
        let has_kernel = |x: &Tensor| normed(x, &weight, 1e-5).is_some();
        let x = numbers(&[4, 1, 8], 0.0);
        assert!(has_kernel(&x));
        assert!(!has_kernel(&x.to_kind(Kind::BFloat16))); // the weight is of another kind
        assert!(!has_kernel(&numbers(&[8, 1, 4], 0.0).permute([2, 1, 0])));
        assert!(!has_kernel(&numbers(&[MOST as i64 / 8 + 1, 1, 8], 0.0)));
        assert!(!has_kernel(&numbers(&[1, 2, 8], 0.0))); // two tokens
        let learned = x.set_requires_grad(true);
        assert!(!has_kernel(&learned));
        assert!(tch::no_grad(|| has_kernel(&learned)));
        let angles = numbers(&[1, 1, 2, 8], 0.0);
        assert!(rotated(&numbers(&[1, 4, 2, 8], 0.0), &angles, &angles).is_none()); // two tokens
    }
}
