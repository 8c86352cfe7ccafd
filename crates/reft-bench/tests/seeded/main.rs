//! What follows a seed. A test crate of its own, one test at a time: libtorch's generator is one per process.

mod frozen_work;
#[path = "../../../reft-methods/tests/methods/oracle.rs"]
#[allow(dead_code, reason = "the test crate that it is of uses all of it")]
mod oracle;
mod random_numbers;
mod timing;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One test at a time draws numbers.
fn alone() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    GENERATOR.lock().unwrap_or_else(PoisonError::into_inner)
}
