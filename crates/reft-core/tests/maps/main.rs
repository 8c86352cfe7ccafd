//! The edits, the interchanges and the orthonormal maps under them.
#![allow(clippy::unwrap_used, reason = "a failed test is what it is for")]

mod bounded;
mod edits;
mod interchanges;
mod orthonormal_maps;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Seeds libtorch's random generator and blocks the other tests of this program, which share it.
fn seeded(seed: i64) -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    guard
}
