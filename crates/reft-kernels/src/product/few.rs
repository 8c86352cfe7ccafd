//! Products with few vectors: four rows at a time, each read once for all vectors. The lanes of a register belong to a row and a vector, and are
//! added together at the end.

use std::sync::Mutex;

use pulp::{Simd, WithSimd};

use super::{Chunk, Ordered, Scratches};
use crate::rows::{BLOCK, Rows};
use crate::threads::share_out;

/// Rows of the matrix that are computed together: each number of `x` is read once for all of them.
pub(crate) const ROWS: usize = 4;
/// Most vectors that are multiplied with these rows at once: the sums of this many vectors stay in registers.
pub(crate) const VECTORS: usize = 3;
/// Consecutive numbers of a vector in a tile: the lanes of the widest registers.
pub(crate) const LANES: usize = 16;

/// Puts vectors `[n, columns]` in tiles of up to [`VECTORS`]. A tile of `m` vectors holds the first [`LANES`] numbers of every vector, then the next
/// [`LANES`] of every vector. The end of a vector is padded with zeros.
pub(crate) fn interleave(x: &[f32], columns: usize, threads: usize, tiles: &mut Vec<f32>) {
    let n = x.len() / columns;
    let padded = columns.next_multiple_of(LANES);
    tiles.resize(n * padded, 0.0);
    let (mut x_left, mut tiles_left) = (x, &mut tiles[..]);
    let work = widths(n).map(|m| {
        let x = x_left.split_off(..m * columns).unwrap_or_default();
        let tile = tiles_left.split_off_mut(..m * padded).unwrap_or_default();
        (m, x, tile)
    });
    share_out(
        threads,
        &Mutex::new(work),
        || (),
        |(), (m, x, tile)| {
            for (i, own) in x.chunks_exact(columns).enumerate() {
                for (part, own) in own.chunks(LANES).enumerate() {
                    let at = (part * m + i) * LANES;
                    let (to, padding) = tile[at..at + LANES].split_at_mut(own.len());
                    to.copy_from_slice(own);
                    padding.fill(0.0);
                }
            }
        },
    );
}

/// `Σ x` of each block of each vector, if they are needed.
pub(crate) fn block_sums(x: &[f32], columns: usize, matrix: &Rows) -> Vec<f32> {
    match matrix {
        Rows::Nibbles { .. } | Rows::Q4K { .. } if x.len() <= VECTORS * columns => {
            let blocks = x.chunks_exact(columns).flat_map(|x| x.chunks(BLOCK));
            blocks.map(|block| block.iter().sum()).collect()
        }
        _ => Vec::new(),
    }
}

/// How many vectors are multiplied at once, tile after tile.
pub(crate) fn widths(n: usize) -> impl Iterator<Item = usize> {
    let mut left = n;
    std::iter::from_fn(move || {
        let m = match left {
            4 => 2, // two and two are quicker than three and one
            _ => left.min(VECTORS),
        };
        left -= m;
        (m > 0).then_some(m)
    })
}

/// The vectors, and the products of four rows with them.
pub(crate) struct Tile<'a> {
    pub(crate) x: &'a Ordered,
    pub(crate) y: &'a mut [f32],
    /// Memory of the next tile's rows.
    pub(crate) next: &'a [u8],
}

/// The tiles of a chunk, each with its row numbers, counted from the chunk's first row. If a tile has fewer than four rows, the last is repeated.
///
/// The rows of the next tile are prefetched: the CPU's own prefetcher does not follow four short rows at once.
#[inline(always)]
pub(crate) fn tiles<'a>(
    matrix: &Rows<'a>,
    first: usize,
    x: &'a Ordered,
    y: &'a mut [f32],
) -> impl Iterator<Item = ([usize; ROWS], Tile<'a>)> {
    let (memory, each) = matrix.memory(x.columns);
    y.chunks_mut(ROWS * x.n).enumerate().map(move |(tile, y)| {
        let next = (first + (tile + 1) * ROWS) * each;
        let next =
            memory.get(next..).map_or(&[][..], |ahead| &ahead[..ahead.len().min(ROWS * each)]);
        let there = y.len() / x.n;
        let (first, last) = (tile * ROWS, tile * ROWS + there - 1);
        let row = |i: usize| (first + i).min(last);
        ([row(0), row(1), row(2), row(3)], Tile { x, y, next })
    })
}

/// `f` of each of four. `array::map` would be called, and its results copied, for every tile.
#[inline(always)]
pub(crate) fn each<A, T>([a, b, c, d]: [A; ROWS], f: impl Fn(A) -> T) -> [T; ROWS] {
    [f(a), f(b), f(c), f(d)]
}

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Prefetches the cache line of an address.
#[inline(always)]
pub(crate) fn fetch(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which every CPU of this kind has: it reads nothing, and an address that is not there is ignored.
        #[allow(unsafe_code)]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(line.cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// A chunk to compute with few vectors.
pub(crate) struct Few<'a>(pub(crate) Chunk<'a>);

impl WithSimd for Few<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Chunk { matrix, first, x, y, scratch: Scratches { rows: [a, b, c, d, ..], .. } } =
            self.0;
        let whole = x.columns / LANES * LANES;
        for (rows, tile) in tiles(&matrix, first, x, y) {
            let [i, j, k, l] = each(rows, |row| first + row);
            let w = [
                matrix.row(i, x.columns, a),
                matrix.row(j, x.columns, b),
                matrix.row(k, x.columns, c),
                matrix.row(l, x.columns, d),
            ];
            let parts = each(w, |w| InCache::<S>(S::as_simd_f32s(&w[..whole]).0));
            tile.compute::<S, 1, _>(simd, parts, each(w, |w| &w[whole..]));
        }
    }
}

/// The numbers of a row in parts. Every call must be inlined into the function that is compiled for the CPU's instructions; iterator adapters
/// would not be.
pub(crate) trait Parts<S: Simd>: Copy {
    /// A whole number of times [`LANES`] numbers.
    type Part: AsRef<[S::f32s]>;
    /// Cache lines that a part takes in memory, in each of [`ROWS`] rows together.
    const LINES: usize;

    fn part(self, simd: S, i: usize) -> Self::Part;
}

#[derive(Clone, Copy)]
struct InCache<'a, S: Simd>(&'a [S::f32s]);

impl<'a, S: Simd> Parts<S> for InCache<'a, S> {
    type Part = &'a [S::f32s];
    const LINES: usize = ROWS * LANES * size_of::<f32>() / LINE;

    #[inline(always)]
    fn part(self, _: S, i: usize) -> Self::Part {
        let per_part = LANES / S::F32_LANES;
        &self.0[i * per_part..][..per_part]
    }
}

impl Tile<'_> {
    /// Multiplies four rows, `K` times [`LANES`] numbers at a time, then the remaining numbers in `ends`.
    #[inline(always)]
    pub(crate) fn compute<S: Simd, const K: usize, P: Parts<S>>(
        self,
        simd: S,
        w: [P; ROWS],
        ends: [&[f32]; ROWS],
    ) {
        let Self { x, y, next } = self;
        let passes = widths(x.n).count();
        let lines = next.len().div_ceil(LINE);
        let padded = x.columns.next_multiple_of(LANES);
        let there = y.len() / x.n;
        let mut begin = 0;
        for (pass, m) in widths(x.n).enumerate() {
            let own = &x.numbers[begin * padded..(begin + m) * padded];
            let put = |i, sums: &[f32]| {
                if i < there {
                    sums.iter().enumerate().for_each(|(m, sum)| y[(begin + m) * there + i] = *sum);
                }
            };
            if passes == 1 {
                match m {
                    1 => sums::<S, 1, K, true, P>(simd, w, ends, own, next, put),
                    2 => sums::<S, 2, K, true, P>(simd, w, ends, own, next, put),
                    _ => sums::<S, 3, K, true, P>(simd, w, ends, own, next, put),
                }
            } else {
                // a share of the lines, because a CPU can have only few reads in flight at once
                for line in pass * lines / passes..(pass + 1) * lines / passes {
                    fetch(next.as_ptr().wrapping_add(line * LINE));
                }
                match m {
                    1 => sums::<S, 1, K, false, P>(simd, w, ends, own, next, put),
                    2 => sums::<S, 2, K, false, P>(simd, w, ends, own, next, put),
                    _ => sums::<S, 3, K, false, P>(simd, w, ends, own, next, put),
                }
            }
            begin += m;
        }
    }
}

/// Four rows times `M` vectors: `put` gets the number of a row and its sums. If it `FETCHES`, it prefetches the `next` rows step by
/// step: a CPU has few reads under way at once, and would stall.
#[inline(always)]
fn sums<S: Simd, const M: usize, const K: usize, const FETCHES: bool, P: Parts<S>>(
    simd: S,
    w: [P; ROWS],
    ends: [&[f32]; ROWS],
    x: &[f32],
    next: &[u8],
    mut put: impl FnMut(usize, &[f32]),
) {
    let per_part = LANES / S::F32_LANES;
    let zero = simd.splat_f32s(0.0);
    let mut acc = [[zero; M]; ROWS];
    let (x, _) = S::as_simd_f32s(x);
    let has_end = usize::from(!ends[0].is_empty());
    let whole = x.len() / (M * per_part) - has_end;
    for (i, x) in x[..whole * M * per_part].chunks_exact(K * M * per_part).enumerate() {
        if FETCHES && !next.is_empty() {
            for line in 0..P::LINES {
                fetch(next.as_ptr().wrapping_add((i * P::LINES + line) * LINE));
            }
        }
        let parts =
            [w[0].part(simd, i), w[1].part(simd, i), w[2].part(simd, i), w[3].part(simd, i)];
        let [a, b, c, d] = &parts;
        let [a, b, c, d] = [a.as_ref(), b.as_ref(), c.as_ref(), d.as_ref()];
        for k in 0..K {
            for j in 0..per_part {
                let at = k * per_part + j;
                let mut own = [zero; M];
                for m in 0..M {
                    own[m] = x[(k * M + m) * per_part + j];
                }
                for (acc, w) in acc.iter_mut().zip([a, b, c, d]) {
                    let w = w[at];
                    for m in 0..M {
                        acc[m] = simd.mul_add_e_f32s(w, own[m], acc[m]);
                    }
                }
            }
        }
    }
    let rest = whole * M * per_part;
    for (i, (acc, end)) in acc.iter().zip(ends).enumerate() {
        let mut sums = [0.0; M];
        for m in 0..M {
            sums[m] = simd.reduce_sum_f32s(acc[m]);
        }
        for (k, w) in end.iter().enumerate() {
            for (m, sum) in sums.iter_mut().enumerate() {
                let lanes: &[f32] =
                    pulp::bytemuck::cast_slice(&x[rest + m * per_part..][..per_part]);
                *sum += w * lanes[k];
            }
        }
        put(i, &sums);
    }
}
