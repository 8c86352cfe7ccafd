//! Products with many vectors: each lane of a register belongs to a vector, so no lanes are added together at the end.
//!
//! Rows of the matrix are expanded in the cache, a chunk at a time. Vectors are stored number after number, in panels of as many vectors as
//! registers hold sums. A part of a panel stays in the first-level cache while all rows of the chunk are multiplied with it.

use std::ops::Range;
use std::sync::Mutex;

use pulp::bytemuck::cast_slice;
use pulp::{Arch, Simd, WithSimd};

use super::{CHUNK, Chunk, Scratches};
use crate::threads::share_out;

/// Fewest vectors for which this is quicker: fewer leave more of the last panel empty.
pub(crate) const MANY: usize = 32;
/// Registers of vectors that are multiplied with a number of the matrix at once.
const REGISTERS: usize = 2;
/// Rows of the matrix that are computed together.
pub(crate) const ROWS: usize = 6;
/// Most numbers of a panel that are multiplied at once: 24 KiB, so that they stay in a first-level cache together with six rows.
const PART: usize = 6 << 10;
/// Columns of a panel that are written together: they stay in a first-level cache.
const COPIED: usize = 64;

/// Vectors in a register of this CPU.
pub(crate) fn lanes() -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    Arch::new().dispatch(Lanes)
}

/// Vectors in a panel, for registers of `lanes` vectors.
pub(crate) fn panel(lanes: usize) -> usize {
    REGISTERS * lanes
}

/// Puts vectors `[n, columns]` in panels `[columns, vectors of the panel]`. The last panel is filled up to whole registers of `lanes` vectors with
/// zeros.
pub(crate) fn pack(x: &[f32], columns: usize, lanes: usize, threads: usize, packed: &mut Vec<f32>) {
    let n = (x.len() / columns).next_multiple_of(lanes);
    packed.resize(n * columns, 0.0);
    let size = panel(lanes) * columns;
    let panels = x.chunks(size).zip(packed.chunks_mut(size));
    share_out(
        threads,
        &Mutex::new(panels),
        || (),
        |(), (x, panel)| {
            let width = panel.len() / columns;
            if x.len() < panel.len() {
                panel.fill(0.0);
            }
            for (part, to) in panel.chunks_mut(COPIED * width).enumerate() {
                for (i, x) in x.chunks_exact(columns).enumerate() {
                    for (x, to) in x[part * COPIED..].iter().zip(to.chunks_exact_mut(width)) {
                        to[i] = *x;
                    }
                }
            }
        },
    );
}

/// A chunk to compute with many vectors.
pub(crate) struct Many<'a>(pub(crate) Chunk<'a>);

impl WithSimd for Many<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Chunk { matrix, first, x, y, scratch: Scratches { rows: scratch, sums } } = self.0;
        let (n, columns) = (x.n, x.columns);
        let rows = y.len() / n;
        let tiles = rows.div_ceil(ROWS);
        // the last row is repeated until six are complete
        let mut w = [&[][..]; CHUNK];
        for (i, (w, scratch)) in w.iter_mut().zip(scratch).enumerate().take(tiles * ROWS) {
            *w = matrix.row(first + i.min(rows - 1), columns, scratch);
        }
        sums.resize(CHUNK * n.next_multiple_of(S::F32_LANES), 0.0);
        let sums = S::as_mut_simd_f32s(sums).0;
        let (x, _) = S::as_simd_f32s(&x.numbers);
        let w = &w[..ROWS * tiles];
        let part = PART / (REGISTERS * S::F32_LANES);
        for begin in (0..columns).step_by(part) {
            let part = begin..columns.min(begin + part);
            for (first, width) in panels(n.div_ceil(S::F32_LANES)) {
                let x = &x[first * columns..][part.start * width..part.end * width];
                let sums = &mut sums[first * ROWS * tiles..][..width * ROWS * tiles];
                match width {
                    1 => add_part::<S, 1>(simd, w, &part, x, sums),
                    _ => add_part::<S, REGISTERS>(simd, w, &part, x, sums),
                }
            }
        }
        put::<ROWS>(cast_slice(sums), n, S::F32_LANES, y);
    }
}

/// The panels of so many registers: the first register of each, and their number.
pub(crate) fn panels(registers: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..registers).step_by(REGISTERS).map(move |first| (first, REGISTERS.min(registers - first)))
}

/// Sums of each panel `[tiles, ROWS, vectors of the panel]` to products of the `n` vectors with a chunk of rows.
#[inline(always)]
pub(crate) fn put<const ROWS: usize>(sums: &[f32], n: usize, lanes: usize, y: &mut [f32]) {
    let tiles = y.len().div_ceil(ROWS * n);
    for (first, width) in panels(n.div_ceil(lanes)) {
        let (first, width) = (first * lanes, width * lanes);
        let vectors = first..n.min(first + width);
        let sums = sums[first * ROWS * tiles..].chunks_exact(ROWS * width);
        for (sums, y) in sums.zip(y.chunks_mut(ROWS * n)) {
            let there = y.len() / n;
            put_tile::<ROWS>(sums, &mut y[vectors.start * there..vectors.end * there], there);
        }
    }
}

/// Sums `[ROWS, vectors of the panel]` to products `[vectors, rows]`. There can be fewer vectors and rows.
#[inline(always)]
fn put_tile<const ROWS: usize>(sums: &[f32], y: &mut [f32], rows: usize) {
    let vectors = y.len() / rows;
    let mut of_rows = [&[][..]; ROWS];
    for (own, sums) in of_rows.iter_mut().zip(sums.chunks_exact(sums.len() / ROWS)) {
        *own = &sums[..vectors];
    }
    if rows == ROWS {
        for (i, y) in y.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
            for (y, own) in y.iter_mut().zip(of_rows) {
                *y = own[i];
            }
        }
    } else {
        for (i, y) in y.chunks_exact_mut(rows).enumerate() {
            for (y, own) in y.iter_mut().zip(of_rows) {
                *y = own[i];
            }
        }
    }
}

/// Adds the products of a part of the columns to the sums `[tiles, ROWS, M]`; the first part's are the sums.
#[inline(always)]
fn add_part<S: Simd, const M: usize>(
    simd: S,
    w: &[&[f32]],
    part: &Range<usize>,
    x: &[S::f32s],
    sums: &mut [S::f32s],
) {
    let x = x.as_chunks::<M>().0;
    let sums = sums.as_chunks_mut::<M>().0.as_chunks_mut::<ROWS>().0;
    for (w, sums) in w.as_chunks::<ROWS>().0.iter().zip(sums) {
        let [a, b, c, d, e, f] = w.map(|w| &w[part.clone()][..x.len()]);
        let mut acc = if part.start == 0 { [[simd.splat_f32s(0.0); M]; ROWS] } else { *sums };
        for (i, x) in x.iter().enumerate() {
            for (acc, w) in acc.iter_mut().zip([a[i], b[i], c[i], d[i], e[i], f[i]]) {
                let w = simd.splat_f32s(w);
                for m in 0..M {
                    acc[m] = simd.mul_add_e_f32s(w, x[m], acc[m]);
                }
            }
        }
        *sums = acc;
    }
}

#[cfg(test)]
mod tests {
    use pulp::{Scalar128b, Scalar256b, Scalar512b};

    use super::super::{Chunk, Ordered, Scratches};
    use super::*;
    use crate::Rows;
    use crate::noise::noise;

    /// Registers of any width: this machine's CPU has only one.
    #[test]
    fn products_are_the_same_in_registers_of_every_width() {
        fn check<S: Simd>(simd: S) {
            let (rows, columns) = (15, 700);
            let w: Vec<f32> = noise(1).take(rows * columns).collect();
            for n in [16, 17, 33, 70] {
                let x: Vec<f32> = noise(2).take(n * columns).collect();
                let mut numbers = Vec::new();
                pack(&x, columns, S::F32_LANES, 1, &mut numbers);
                let ordered = Ordered { n, columns, numbers, ..Ordered::default() };
                let (mut y, mut scratch) = (vec![f32::NAN; n * rows], Scratches::default());
                Many(Chunk {
                    matrix: Rows::F32(&w),
                    first: 0,
                    x: &ordered,
                    y: &mut y,
                    scratch: &mut scratch,
                })
                .with_simd(simd);
                for (group, y) in y.chunks(ROWS * n).enumerate() {
                    let there = y.len() / n;
                    for (i, y) in y.iter().enumerate() {
                        let row = &w[(group * ROWS + i % there) * columns..][..columns];
                        let pairs = row.iter().zip(&x[i / there * columns..]);
                        let products = pairs.map(|(w, x)| f64::from(*w) * f64::from(*x));
                        let (sum, sizes) =
                            products.fold((0.0, 0.0), |(sum, sizes), p| (sum + p, sizes + p.abs()));
                        let tolerance =
                            4.0 * f64::from(f32::EPSILON) * (columns as f64).sqrt() * sizes;
                        assert!((f64::from(*y) - sum).abs() <= tolerance, "{n}: {y} {sum} at {i}");
                    }
                }
            }
        }
        check(Scalar128b);
        check(Scalar256b);
        check(Scalar512b);
    }
}
