use std::sync::Mutex;

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use pulp::Arch;

use crate::elementwise::round_to_bf16;
use crate::rows::{Rows, Scratch};
use crate::threads::share_out;

/// Rows that a thread takes at a time.
const CHUNK: usize = 16;

/// Where numbers are written, each rounded once from f32.
#[derive(Debug)]
pub enum NumbersMut<'a> {
    /// As they are.
    F32(&'a mut [f32]),
    /// As the bits of bf16.
    Bf16(&'a mut [u16]),
    /// As the bits of f16.
    F16(&'a mut [u16]),
}

/// The numbers of a matrix `[rows, columns]`.
///
/// # Panics
/// If the lengths do not fit together.
pub fn expand(matrix: Rows, columns: usize, y: NumbersMut, threads: usize) {
    match y {
        NumbersMut::F32(y) => expand_as(matrix, columns, y, <[f32]>::copy_from_slice, threads),
        NumbersMut::Bf16(y) => {
            expand_as(matrix, columns, y, |y, row| round_to_bf16(row, y), threads);
        }
        NumbersMut::F16(y) => expand_as(matrix, columns, y, |y, row| round_to_f16(row, y), threads),
    }
}

/// Rounds numbers to f16, to the nearest and ties to even: `y` gets the bits.
///
/// # Panics
/// If the lengths differ.
pub fn round_to_f16(x: &[f32], y: &mut [u16]) {
    y.reinterpret_cast_mut::<f16>().convert_from_f32_slice(x);
}

// Not generic outside this crate: code that another crate instantiates has that crate's optimisation.
fn expand_as<T: Send>(
    matrix: Rows,
    columns: usize,
    y: &mut [T],
    store: impl Fn(&mut [T], &[f32]) + Sync,
    threads: usize,
) {
    let fits = columns > 0 && matrix.holds(y.len() / columns, columns);
    assert!(fits, "the matrix is not of this size");
    let work = y.chunks_mut(CHUNK * columns).enumerate();
    let threads = threads.min(work.len());
    share_out(threads, &Mutex::new(work), Scratch::default, |scratch, (chunk, y)| {
        Arch::new().dispatch(|| {
            for (row, y) in y.chunks_exact_mut(columns).enumerate() {
                store(y, matrix.row(chunk * CHUNK + row, columns, scratch));
            }
        });
    });
}
