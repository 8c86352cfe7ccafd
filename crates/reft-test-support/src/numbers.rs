use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::Outcome;

/// A guard that blocks other tests of this program while it is held: they share libtorch's random number generator. libtorch computes with
/// one thread from then on, so that sums are taken in one order.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    tch::set_num_threads(1);
    guard
}

/// The unmasked numbers of each row of a right-padded batch `[b, t]`: token ids or labels.
///
/// # Errors
/// If they are no integers.
pub fn own_tokens(batch: &Tensor, attention_mask: &Tensor) -> Outcome<Vec<Vec<i64>>> {
    let row = |i| {
        let length = attention_mask.select(0, i).sum(Kind::Int64).int64_value(&[]);
        Ok(batch.select(0, i).narrow(0, 0, length).try_into()?)
    };
    (0..batch.size()[0]).map(row).collect()
}

/// Moves parameters away from their start by the same noise in every run, so that no part of a method is multiplied by 0. The flag of a
/// parameter says whether its start is kept under the noise, as for scales and rotations; otherwise the noise replaces it.
pub fn disturb(parameters: impl IntoIterator<Item = (Tensor, bool)>, seed: i64) {
    let _guard = tch::no_grad_guard();
    for (i, (mut tensor, stays_near)) in parameters.into_iter().enumerate() {
        let places = Tensor::arange(tensor.numel() as i64, (Kind::Double, Device::Cpu));
        let places = places + (1000 * seed + i as i64);
        let noise = ((places * 12.9898).sin() * 43_758.545_3).frac() * 0.15; // in ±0.15
        let noise = noise.to_kind(Kind::Float).view_as(&tensor);
        let start = if stays_near { 1.0 } else { 0.0 };
        let moved = &tensor * start + noise;
        tensor.copy_(&moved);
    }
}
