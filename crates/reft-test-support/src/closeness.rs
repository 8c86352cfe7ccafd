use tch::{Kind, Tensor};

/// Tolerance for logits whose f32 sums run in another order, |logits| up to 10: measured 6e-6.
pub const LOGITS: f64 = 2e-5;
/// Tolerance for gradients whose f32 sums run in another order, relative to the largest entry of each tensor.
pub const GRADIENTS: f64 = 1e-4;

/// [`LOGITS`], for logits or hidden states as large as the recorded ones.
pub fn of_logits(recorded: &Tensor) -> f64 {
    LOGITS * (recorded.abs().max().double_value(&[]) / 10.0).max(1.0)
}

/// Fails with the largest difference, its index and both values if it is not within `tolerance`.
#[track_caller]
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size(), "{what}: shape");
    let all = |x: &Tensor| -> Vec<f64> {
        let flat = x.detach().to_kind(Kind::Double).flatten(0, -1);
        Vec::try_from(flat).expect("a flat tensor of doubles is a list of them")
    };
    assert_values_close(what, &all(found), &all(expected), tolerance);
}

/// As [`assert_close`], for slices.
#[track_caller]
pub fn assert_values_close<T: Copy + Into<f64>>(
    what: &str,
    found: &[T],
    expected: &[T],
    tolerance: f64,
) {
    let doubles = |values: &[T]| -> Vec<f64> { values.iter().map(|x| (*x).into()).collect() };
    let (found, expected) = (doubles(found), doubles(expected));
    assert_eq!(found.len(), expected.len(), "{what}: another number of values");
    let differences =
        found.iter().zip(&expected).map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() });
    // NaN counts as the largest
    let Some((i, largest)) = differences.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)) else {
        return;
    };
    assert!(
        largest <= tolerance, // NaN fails
        "{what}: {} at flat index {i}, expected {} to {tolerance:e}: off by {largest:e}",
        found[i],
        expected[i],
    );
}

/// The largest difference between two lists of tensors of the same shapes.
#[track_caller]
pub fn largest_difference(a: &[Tensor], b: &[Tensor]) -> f64 {
    assert_eq!(a.len(), b.len(), "another number of tensors");
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| (a - b).abs().max().double_value(&[])).fold(0.0, f64::max)
}

/// The largest difference of two tensors, as a share of the largest entry of the second.
#[track_caller]
pub fn relative_difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let difference = (found - expected).abs().max().double_value(&[]);
    difference / expected.abs().max().double_value(&[])
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn what_is_not_close_is_told_with_its_place() {
        let told = catch_unwind(|| {
            let (a, b) =
                (Tensor::from_slice(&[1f32, 2.0, 3.0]), Tensor::from_slice(&[1f32, 2.5, 3.0]));
            assert_close("x", &a, &b, 0.1);
        });
        let told = told.err().and_then(|told| told.downcast::<String>().ok());
        let expected = "x: 2 at flat index 1, expected 2.5 to 1e-1: off by 5e-1";
        assert_eq!(told.as_deref().map(String::as_str), Some(expected));
    }

    #[test]
    fn nan_is_close_to_nothing_and_an_infinity_to_itself() {
        let fails =
            |a: f64, b: f64| catch_unwind(|| assert_values_close("x", &[a], &[b], 1e9)).is_err();
        assert!(fails(f64::NAN, 0.0) && fails(0.0, f64::NAN) && fails(f64::NAN, f64::NAN));
        assert!(fails(f64::INFINITY, 0.0) && !fails(f64::INFINITY, f64::INFINITY));
        let other_shape = catch_unwind(|| {
            assert_close("x", &Tensor::from_slice(&[1f32]), &Tensor::from_slice(&[1f32, 2.0]), 9.0)
        });
        assert!(other_shape.is_err());
    }

    #[test]
    fn relative_differences_are_shares_of_the_largest_entry() {
        let (a, b) = (Tensor::from_slice(&[1f64, -8.0]), Tensor::from_slice(&[2f64, -10.0]));
        assert_eq!(relative_difference(&a, &b), 0.2);
        assert_eq!(largest_difference(&[a], &[b]), 2.0);
    }
}
