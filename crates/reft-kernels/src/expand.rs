use std::sync::Mutex;

use pulp::Arch;

use crate::rows::{Rows, Scratch};
use crate::threads::share_out;

/// Rows that a thread takes at a time.
const CHUNK: usize = 16;

/// The numbers of a matrix `[rows, columns]` in f32. `store` writes those of a row into its part of `y`, which may have another kind of number.
///
/// # Panics
/// If the lengths do not fit together.
pub fn expand<T: Send>(
    matrix: Rows,
    columns: usize,
    y: &mut [T],
    store: impl Fn(&[f32], &mut [T]) + Sync,
    threads: usize,
) {
    assert!(
        columns > 0 && matrix.holds(y.len() / columns, columns),
        "the matrix is not of this size"
    );
    let work = y.chunks_mut(CHUNK * columns).enumerate();
    let threads = threads.min(work.len());
    share_out(threads, &Mutex::new(work), Scratch::default, |scratch, (chunk, y)| {
        Arch::new().dispatch(|| {
            for (row, y) in y.chunks_exact_mut(columns).enumerate() {
                store(matrix.row(chunk * CHUNK + row, columns, scratch), y);
            }
        });
    });
}
