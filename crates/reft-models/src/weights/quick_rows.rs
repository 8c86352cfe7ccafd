//! A block's norms and rotations for the few rows of decoding: there, each libtorch operation takes longer to launch than to compute.

use reft_kernels::{rms_norm, rotate_halves};
use tch::Tensor;

use crate::weights::quick_products::{filled, has_its_products_recorded, memory};

/// Most numbers of a tensor for which these functions are faster.
const MOST: usize = 1 << 15;

/// The numbers of a small, contiguous f32 tensor on a CPU without autograd.
fn few(x: &Tensor) -> Option<&[f32]> {
    if x.numel() > MOST || has_its_products_recorded(x) {
        return None;
    }
    memory(x)
}

/// [`Tensor::rms_norm`] of the last dimension, for one token of each row, `[.., 1, d]`; `None`: libtorch must compute it.
pub(crate) fn normed(x: &Tensor, weight: &Tensor, eps: f64) -> Option<Tensor> {
    let size = x.size();
    if !matches!(size[..], [.., 1, d] if weight.size() == [d]) {
        return None;
    }
    let (numbers, weight) = (few(x)?, few(weight)?);
    Some(filled(&size, |y| rms_norm(numbers, weight, eps, y)))
}

/// `x ⊙ cos + (x with its halves exchanged) ⊙ sin` of `x` `[b, n, 1, d]` with `cos` and `sin` `[1 or b, 1, 1, d]`; `None`: libtorch must
/// compute it.
pub(crate) fn rotated(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Option<Tensor> {
    let (x_size, size) = (x.size(), cos.size());
    let (&[b, n, 1, d], &[turned, 1, 1, width]) = (&x_size[..], &size[..]) else { return None };
    if width != d || (turned != 1 && turned != b) {
        return None;
    }
    let (numbers, cos, sin) = (few(x)?, few(cos)?, few(sin)?);
    let (d, of_row) = (d as usize, (n * d) as usize);
    Some(filled(&x_size, |y| {
        let rows = numbers.chunks_exact(of_row).zip(y.chunks_exact_mut(of_row));
        for (row, (x, y)) in rows.enumerate() {
            let angles = if turned == 1 { 0..d } else { row * d..(row + 1) * d };
            rotate_halves(x, &cos[angles.clone()], &sin[angles], y);
        }
    }))
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

    /// Both sum the same f32 products in another order.
    fn assert_close(found: &Tensor, expected: &Tensor) {
        assert_eq!((found.size(), found.kind()), (expected.size(), expected.kind()));
        let error = (found - expected).abs().max().double_value(&[]);
        let largest = expected.abs().max().double_value(&[]);
        assert!(error <= 2e-6 * largest && largest > 1.0, "{error} of {largest}");
    }

    #[test]
    fn rows_are_normed_as_libtorch_does() {
        for d in [576, 7, 50] {
            let (x, weight) = (numbers(&[3, 1, d], 0.3), numbers(&[d], 1.0));
            let found = normed(&x, &weight, 1e-5).expect("few rows");
            assert_close(&found, &x.rms_norm([d], Some(&weight), 1e-5));
        }
    }

    #[test]
    fn rows_are_turned_as_libtorch_does() {
        for turned in [1, 3] {
            let (x, cos) = (numbers(&[3, 4, 1, 8], 0.3), numbers(&[turned, 1, 1, 8], 1.0));
            let sin = numbers(&[turned, 1, 1, 8], 2.0);
            let found = rotated(&x, &cos, &sin).expect("few rows");
            assert_close(&found, &(&x * &cos + x.roll([4], [-1]) * &sin));
        }
    }

    #[test]
    fn what_is_large_wants_a_gradient_or_is_of_another_kind_is_left_to_libtorch() {
        let weight = numbers(&[8], 1.0);
        let has_kernel = |x: &Tensor| normed(x, &weight, 1e-5).is_some();
        let x = numbers(&[4, 1, 8], 0.0);
        assert!(has_kernel(&x));
        assert!(!has_kernel(&x.to_kind(Kind::BFloat16)));
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
