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

/// The numbers of a matrix `[rows, columns]`, from the row `first` on, as many as `y` takes.
///
/// # Panics
/// If the lengths do not fit together, or there are not so many rows.
pub fn expand(matrix: Rows, size: (usize, usize), first: usize, y: NumbersMut, threads: usize) {
    let rows = (matrix, size, first);
    match y {
        NumbersMut::F32(y) => expand_as(rows, y, <[f32]>::copy_from_slice, threads),
        NumbersMut::Bf16(y) => expand_as(rows, y, |y, row| round_to_bf16(row, y), threads),
        NumbersMut::F16(y) => expand_as(rows, y, |y, row| round_to_f16(row, y), threads),
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
    (matrix, (rows, columns), first): (Rows, (usize, usize), usize),
    y: &mut [T],
    store: impl Fn(&mut [T], &[f32]) + Sync,
    threads: usize,
) {
    assert!(columns > 0 && matrix.holds(rows, columns), "the matrix is not of this size");
    let is_whole = y.len().is_multiple_of(columns);
    assert!(is_whole && first + y.len() / columns <= rows, "there are not so many rows");
    let work = y.chunks_mut(CHUNK * columns).enumerate();
    let threads = threads.min(work.len());
    share_out(threads, &Mutex::new(work), Scratch::default, |scratch, (chunk, y)| {
        Arch::new().dispatch(|| {
            for (row, y) in y.chunks_exact_mut(columns).enumerate() {
                store(y, matrix.row(first + chunk * CHUNK + row, columns, scratch));
            }
        });
    });
}
