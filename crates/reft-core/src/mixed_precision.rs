use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tch::{Kind, Tensor};

thread_local! {
    static IS_ON: Cell<bool> = const { Cell::new(false) };
}

/// Runs `compute` with libtorch's autocast on or off. On a GPU, autocast computes products in f16, whatever the kind of the factors.
///
/// Two differences from [`tch::autocast`]: libtorch is called only if the state changes, since each call costs as much as a small kernel
/// and libtorch 2.11 writes a warning for it; and a panic restores the state. Code that runs this crate's edits must use this function,
/// because [`in_f32`] does not see tch's.
pub fn autocast<T>(enabled: bool, compute: impl FnOnce() -> T) -> T {
    let before = IS_ON.replace(enabled);
    let caught = || catch_unwind(AssertUnwindSafe(compute));
    let computed = if enabled == before { caught() } else { tch::autocast(enabled, caught) };
    IS_ON.set(before);
    computed.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Runs an edit in f32, outside of autocast, and returns the result in the kind of `base`, a tensor of any shape that the edit takes.
///
/// In f16 or bf16 the columns of `Rᵀ` are no longer orthonormal, and the edit leaks out of its subspace.
pub fn in_f32(base: &Tensor, edit: impl FnOnce(Tensor) -> Tensor) -> Tensor {
    autocast(false, || edit(base.to_kind(Kind::Float)).to_kind(base.kind()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_restored_after_a_panic() {
        let stopped = catch_unwind(|| autocast(true, || panic!("stop")));
        assert!(stopped.is_err() && !IS_ON.get());
        autocast(true, || {
            assert!(IS_ON.get());
            let stopped = catch_unwind(|| autocast(false, || panic!("stop")));
            assert!(stopped.is_err() && IS_ON.get());
        });
        assert!(!IS_ON.get());
    }

    #[test]
    fn an_edit_is_outside_of_autocast_and_keeps_the_kind() {
        let base = Tensor::from_slice(&[1.0f32, 2.0]).to_kind(Kind::BFloat16);
        let edited = autocast(true, || {
            in_f32(&base, |h| {
                assert!(!IS_ON.get() && h.kind() == Kind::Float);
                h + 1.0
            })
        });
        assert_eq!(edited.kind(), Kind::BFloat16);
        assert_eq!(edited, Tensor::from_slice(&[2.0f32, 3.0]).to_kind(Kind::BFloat16));
    }
}
