use std::cell::Cell;
use std::sync::Mutex;

use pulp::{Arch, Simd, WithSimd};

use crate::elementwise::round_to_bf16;
use crate::expand::round_to_f16;
#[cfg(target_arch = "x86_64")]
use crate::in_registers::{InRegisters, in_registers};
use crate::rows::{BLOCK, Rows, Scratch, bf16_to, halves_to};
use crate::threads::share_out;

/// Rows of the matrix that are computed together: each number of `x` is read once for all of them.
pub(crate) const TILE: usize = 4;
/// Most vectors that are multiplied with a tile of rows at once: the sums of this many vectors stay in registers.
pub(crate) const VECTORS: usize = 3;
/// Rows that a thread takes at a time.
const CHUNK: usize = 32;
/// Most products for which a thread keeps memory.
const MOST_KEPT: usize = 1 << 21;
/// Vectors whose products a thread puts in order at a time.
const TURNED: usize = 8;
/// Most numbers, in all vectors together, that are multiplied with a whole matrix at once. More do not stay in a CPU's cache from one tile
/// of rows to the next.
const NUMBERS_AT_ONCE: usize = 1 << 19;

/// `y = W x`: a matrix `[rows, columns]` times `n` vectors `[n, columns]`, into `[n, rows]`, in f32.
///
/// Each number of the matrix is read once for as many vectors as stay in the cache together. The order of the sums does not depend on the number
/// of threads, nor on that of vectors, except that numbers in four bits have another one for up to three vectors.
///
/// # Panics
/// If the lengths do not fit together.
pub fn product(matrix: Rows, columns: usize, x: &[f32], y: &mut [f32], threads: usize) {
    assert!(columns > 0 && x.len().is_multiple_of(columns), "x is no whole number of vectors");
    let n = x.len() / columns;
    assert!(n > 0 && y.len().is_multiple_of(n), "y is no whole number of vectors");
    let rows = y.len() / n;
    assert!(matrix.holds(rows, columns), "the matrix is not of this size");
    let at_once = (NUMBERS_AT_ONCE / columns).next_multiple_of(VECTORS).max(VECTORS);
    let mut kept = KEPT.take();
    for (x, y) in x.chunks(at_once * columns).zip(y.chunks_mut(at_once * rows)) {
        let tiles = Tiles::of(x, columns, &matrix, threads, kept.tiles);
        if tiles.n == 1 {
            by_chunks(matrix, &tiles, y, threads);
        } else {
            if kept.products.len() < y.len() {
                kept.products.resize(y.len(), 0.0);
            }
            let products = &mut kept.products[..y.len()];
            by_chunks(matrix, &tiles, products, threads);
            put_in_order(products, tiles.n, y, threads);
        }
        kept.tiles = tiles.x;
    }
    if kept.products.len() <= MOST_KEPT {
        KEPT.set(kept);
    }
}

/// Memory that a thread keeps for its next product: new memory costs the time to clear it.
#[derive(Debug, Default)]
struct Kept {
    tiles: Vec<f32>,
    products: Vec<f32>,
}

thread_local! {
    static KEPT: Cell<Kept> = Cell::default();
}

/// Products `[n, 4]` of each four rows to `y` `[n, rows]`.
fn put_in_order(products: &[f32], n: usize, y: &mut [f32], threads: usize) {
    let rows = y.len() / n;
    let of_tiles = products.chunks(TILE * n);
    let results = y.chunks_mut(TURNED * rows).enumerate();
    share_out(
        to_copy(products.len(), threads),
        &Mutex::new(results),
        || (),
        |(), (group, y)| {
            for (i, y) in y.chunks_exact_mut(rows).enumerate() {
                let (whole, rest) = y.as_chunks_mut::<TILE>();
                let i = group * TURNED + i;
                for (y, of_tile) in whole.iter_mut().zip(of_tiles.clone()) {
                    *y = of_tile.as_chunks().0[i];
                }
                if let Some(of_tile) = of_tiles.clone().nth(whole.len()) {
                    rest.copy_from_slice(&of_tile[i * rest.len()..][..rest.len()]);
                }
            }
        },
    );
}

/// The number of threads for copying this many numbers: for few numbers, waking other threads takes longer than copying.
fn to_copy(numbers: usize, threads: usize) -> usize {
    const FEW: usize = 1 << 14;
    if numbers <= FEW { 1 } else { threads }
}

/// The products `[n, 4]` of each four rows: the threads share the chunks of rows.
fn by_chunks(matrix: Rows, x: &Tiles, y: &mut [f32], threads: usize) {
    let work = y.chunks_mut(CHUNK * x.n).enumerate();
    let chunks = work.len();
    share_out(
        threads.min(chunks),
        &Mutex::new(work),
        <[Scratch; TILE]>::default,
        |scratch, (chunk, y)| Chunk { matrix, first: chunk * CHUNK, x, y, scratch }.compute(),
    );
}

/// The largest of a vector's products with the rows of a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Largest {
    /// The product; NaN if one of the products is.
    pub value: f32,
    /// Its row, the first of equal ones.
    pub row: usize,
}

impl Largest {
    const NONE: Self = Self { value: f32::NEG_INFINITY, row: 0 };

    /// Replaces it by one of a later row, if that is larger or NaN.
    #[inline(always)]
    fn meet(&mut self, later: Self) {
        if later.value > self.value || (later.value.is_nan() && !self.value.is_nan()) {
            *self = later;
        }
    }
}

/// The numbers that products are rounded to before they are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Not rounded.
    F32,
    /// Rounded to bf16.
    Bf16,
    /// Rounded to f16.
    F16,
}

impl Precision {
    /// Rounds numbers in place; `bits` is a buffer.
    fn round(self, numbers: &mut [f32], bits: &mut Vec<u16>) {
        match self {
            Self::F32 => (),
            Self::Bf16 => {
                bits.resize(numbers.len(), 0);
                round_to_bf16(numbers, bits);
                bf16_to(bits, numbers);
            }
            Self::F16 => {
                bits.resize(numbers.len(), 0);
                round_to_f16(numbers, bits);
                halves_to(bits, numbers);
            }
        }
    }
}

/// `max W x` and its row, for each of `n` vectors `[n, columns]`. The products equal the products of [`product`], but are not written to memory.
///
/// # Panics
/// If the lengths do not fit together.
pub fn largest_products(
    matrix: Rows,
    (rows, columns): (usize, usize),
    x: &[f32],
    precision: Precision,
    threads: usize,
) -> Vec<Largest> {
    assert!(columns > 0 && x.len().is_multiple_of(columns), "x is no whole number of vectors");
    assert!(matrix.holds(rows, columns), "the matrix is not of this size");
    let tiles = Tiles::of(x, columns, &matrix, threads, Vec::new());
    let n = tiles.n;
    assert!(n > 0, "there is no vector");
    let chunks = rows.div_ceil(CHUNK);
    let mut of_chunks = vec![Largest::NONE; chunks * n];
    share_out(
        threads.min(chunks),
        &Mutex::new(of_chunks.chunks_exact_mut(n).enumerate()),
        <(Vec<f32>, Vec<u16>, [Scratch; TILE])>::default,
        |(y, bits, scratch), (chunk, largest)| {
            let first = chunk * CHUNK;
            y.resize(CHUNK.min(rows - first) * n, 0.0);
            Chunk { matrix, first, x: &tiles, y, scratch }.compute();
            precision.round(y, bits);
            for (tile, y) in y.chunks(TILE * n).enumerate() {
                for (largest, y) in largest.iter_mut().zip(y.chunks_exact(y.len() / n)) {
                    for (row, value) in y.iter().enumerate() {
                        largest.meet(Largest { value: *value, row: first + tile * TILE + row });
                    }
                }
            }
        },
    );
    let mut all = vec![Largest::NONE; n];
    for of_chunk in of_chunks.chunks_exact(n) {
        all.iter_mut().zip(of_chunk).for_each(|(largest, later)| largest.meet(*later));
    }
    all
}

/// The vectors, interleaved in tiles of up to [`VECTORS`].
pub(crate) struct Tiles {
    pub(crate) n: usize,
    pub(crate) columns: usize,
    pub(crate) x: Vec<f32>,
    /// `Σ x` of each block of a vector, `[n, blocks]`, for few vectors and matrices whose blocks have offsets.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "read in AVX2's registers")
    )]
    pub(crate) sums: Vec<f32>,
}

/// Consecutive numbers of a vector in a tile: the lanes of the widest registers.
pub(crate) const LANES: usize = 16;

impl Tiles {
    /// Each tile of `m` vectors holds the first `LANES` numbers of every vector, then the next `LANES` of every vector. The end of a vector is
    /// padded with zeros.
    /// `tiles` is memory for them.
    fn of(x: &[f32], columns: usize, matrix: &Rows, threads: usize, mut tiles: Vec<f32>) -> Self {
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
            to_copy(x.len(), threads),
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
        let sums = match matrix {
            Rows::Nibbles { .. } | Rows::Q4K { .. } if n <= VECTORS => {
                let blocks = x.chunks_exact(columns).flat_map(|x| x.chunks(BLOCK));
                blocks.map(|block| block.iter().sum()).collect()
            }
            _ => Vec::new(),
        };
        Self { n, columns, x: tiles, sums }
    }
}

/// How many vectors are multiplied at once, tile after tile.
fn widths(n: usize) -> impl Iterator<Item = usize> {
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

/// Rows from `first` on, as many as `y` `[.., n]` has.
pub(crate) struct Chunk<'a> {
    pub(crate) matrix: Rows<'a>,
    pub(crate) first: usize,
    pub(crate) x: &'a Tiles,
    /// The products `[n, 4]` of each four rows.
    pub(crate) y: &'a mut [f32],
    pub(crate) scratch: &'a mut [Scratch; TILE],
}

impl Chunk<'_> {
    /// Number of rows.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn rows(&self) -> usize {
        self.y.len() / self.x.n
    }

    /// Computes the products, with the best instructions of this CPU.
    fn compute(self) {
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = in_registers(&self) {
            return simd.vectorize(InRegisters { simd, chunk: self });
        }
        Arch::new().dispatch(self);
    }
}

/// The vectors, and the products of four rows with them.
pub(crate) struct Tile<'a> {
    pub(crate) x: &'a Tiles,
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
    x: &'a Tiles,
    y: &'a mut [f32],
) -> impl Iterator<Item = ([usize; TILE], Tile<'a>)> {
    let (memory, each) = matrix.memory(x.columns);
    y.chunks_mut(TILE * x.n).enumerate().map(move |(tile, y)| {
        let next = (first + (tile + 1) * TILE) * each;
        let next =
            memory.get(next..).map_or(&[][..], |ahead| &ahead[..ahead.len().min(TILE * each)]);
        let there = y.len() / x.n;
        let (first, last) = (tile * TILE, tile * TILE + there - 1);
        let row = |i: usize| (first + i).min(last);
        ([row(0), row(1), row(2), row(3)], Tile { x, y, next })
    })
}

/// `f` of each of four. `array::map` would be called, and its results copied, for every tile.
#[inline(always)]
pub(crate) fn each<A, T>([a, b, c, d]: [A; TILE], f: impl Fn(A) -> T) -> [T; TILE] {
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

impl WithSimd for Chunk<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { matrix, first, x, y, scratch } = self;
        let [a, b, c, d] = scratch;
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
    /// Cache lines that a part takes in memory, in each of [`TILE`] rows together.
    const LINES: usize;

    fn part(self, simd: S, i: usize) -> Self::Part;
}

#[derive(Clone, Copy)]
struct InCache<'a, S: Simd>(&'a [S::f32s]);

impl<'a, S: Simd> Parts<S> for InCache<'a, S> {
    type Part = &'a [S::f32s];
    const LINES: usize = TILE * LANES * size_of::<f32>() / LINE;

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
        w: [P; TILE],
        ends: [&[f32]; TILE],
    ) {
        let Self { x, y, next } = self;
        let passes = widths(x.n).count();
        let lines = next.len().div_ceil(LINE);
        let padded = x.columns.next_multiple_of(LANES);
        let there = y.len() / x.n;
        let mut begin = 0;
        for (pass, m) in widths(x.n).enumerate() {
            let own = &x.x[begin * padded..(begin + m) * padded];
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
    w: [P; TILE],
    ends: [&[f32]; TILE],
    x: &[f32],
    next: &[u8],
    mut put: impl FnMut(usize, &[f32]),
) {
    let per_part = LANES / S::F32_LANES;
    let zero = simd.splat_f32s(0.0);
    let mut acc = [[zero; M]; TILE];
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::noise;
    use crate::{NumbersMut, Offsets, expand};

    fn bytes(seed: u32, n: usize) -> Vec<u8> {
        noise(seed).take(n).map(|x| ((x + 1.0) * 127.9) as u8).collect()
    }

    fn halves(seed: u32, n: usize) -> Vec<u16> {
        noise(seed).take(n).map(|x| half::f16::from_f32(x).to_bits()).collect()
    }

    /// One matrix of each kind, with its numbers computed from the definition.
    fn each_kind(rows: usize, columns: usize, mut check: impl FnMut(&str, Rows, Vec<f32>)) {
        let n = rows * columns;
        let float = |bits: &[u16], i: usize| half::f16::from_bits(bits[i]).to_f32();
        let numbers: Vec<f32> = noise(1).take(n).collect();
        check("f32", Rows::F32(&numbers), numbers.clone());
        let bf16: Vec<u16> = numbers.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
        let values = bf16.iter().map(|bits| half::bf16::from_bits(*bits).to_f32());
        check("bf16", Rows::Bf16(&bf16), values.collect());
        let f16 = halves(2, n);
        check("f16", Rows::F16(&f16), (0..n).map(|i| float(&f16, i)).collect());
        if columns.is_multiple_of(32) {
            let (d, m) = (halves(3, n / 32), halves(4, n / 32));
            let quants: Vec<i8> = bytes(5, n).into_iter().map(u8::cast_signed).collect();
            let values = (0..n).map(|i| float(&d, i / 32) * f32::from(quants[i])).collect();
            check("q8_0", Rows::Q8_0 { scales: &d, quants: &quants }, values);
            let (quants, fifth) = (bytes(6, n / 2), bytes(7, n / 8));
            for (is_five, is_offset) in [(false, false), (false, true), (true, false), (true, true)]
            {
                let zero = if is_five { 16 } else { 8 };
                let value = |i: usize| {
                    let (block, j) = (i / 32, i % 32);
                    let byte = quants[16 * block + j % 16];
                    let low = if j < 16 { byte & 15 } else { byte >> 4 };
                    let bit = (fifth[4 * block + j / 8] >> (j % 8)) & 1;
                    let q = f32::from(low + if is_five { 16 * bit } else { 0 });
                    let d = float(&d, block);
                    if is_offset { q * d + float(&m, block) } else { (q - f32::from(zero)) * d }
                };
                let offsets = if is_offset { Offsets::Each(&m) } else { Offsets::Zero(zero) };
                let fifth_bits = is_five.then_some(&fifth[..]);
                let matrix = Rows::Nibbles { scales: &d, offsets, fifth_bits, quants: &quants };
                let name = format!("{} bits, offsets {is_offset}", if is_five { 5 } else { 4 });
                check(&name, matrix, (0..n).map(value).collect());
            }
        }
        if columns.is_multiple_of(256) {
            let (d, m) = (halves(8, n / 256), halves(9, n / 256));
            let (s, e) = (bytes(10, n / 32), bytes(11, n / 32));
            let quants = bytes(12, n / 2);
            let value = |i: usize| {
                let byte = quants[i / 64 * 32 + i % 32];
                let q = if i % 64 < 32 { byte & 15 } else { byte >> 4 };
                float(&d, i / 256) * f32::from(s[i / 32]) * f32::from(q)
                    - float(&m, i / 256) * f32::from(e[i / 32])
            };
            let values = (0..n).map(value).collect();
            let (scales, offsets) = (&d[..], &m[..]);
            let (inner_scales, inner_offsets, quants) = (&s[..], &e[..], &quants[..]);
            check(
                "q4_k",
                Rows::Q4K { scales, offsets, inner_scales, inner_offsets, quants },
                values,
            );
            let signed = |seed, n| bytes(seed, n).into_iter().map(u8::cast_signed).collect();
            let (s, quants): (Vec<i8>, Vec<i8>) = (signed(13, n / 16), signed(14, n));
            let value = |i: usize| float(&d, i / 256) * f32::from(s[i / 16]) * f32::from(quants[i]);
            let values = (0..n).map(value).collect();
            check("q6_k", Rows::Q6K { scales, inner_scales: &s, quants: &quants }, values);
        }
    }

    /// The f32 error of a sum of `n` products, in any order, is at most `n` roundings of the sum of their absolute values. Roundings go up and
    /// down equally often, so the error stays within a few times `√n` roundings.
    #[test]
    fn products_are_those_of_the_numbers_that_are_stored() {
        for (rows, columns) in [(1, 32), (3, 256), (4, 96), (37, 288), (70, 512), (5, 7), (33, 50)]
        {
            each_kind(rows, columns, |name, matrix, values| {
                for threads in [1, 2] {
                    let mut all = vec![f32::NAN; rows * columns];
                    expand(matrix, columns, NumbersMut::F32(&mut all), threads);
                    assert_eq!(all, values, "{name}");
                }
                let mut alone = Vec::new();
                for n in 1..=17 {
                    let x: Vec<f32> = noise(20).take(n * columns).collect();
                    let mut found = vec![f32::NAN; n * rows];
                    product(matrix, columns, &x, &mut found, 1);
                    let mut shared = vec![f32::NAN; n * rows];
                    product(matrix, columns, &x, &mut shared, 2);
                    assert_eq!(found, shared, "{name}: threads change the result");
                    if n == 1 {
                        alone.clone_from(&found);
                    }
                    let has_another_order = name.starts_with("4 bits") || name == "q4_k";
                    if n <= VECTORS || !has_another_order {
                        assert_eq!(found[..rows], alone, "{name}: other vectors change the result");
                    }
                    for threads in [1, 2] {
                        let largest =
                            largest_products(matrix, (rows, columns), &x, Precision::F32, threads);
                        let expected: Vec<Largest> =
                            found.chunks(rows).map(first_largest).collect();
                        assert_eq!(largest, expected, "{name}");
                    }
                    for (i, y) in found.iter().enumerate() {
                        let (at, row) = (i / rows * columns, i % rows * columns);
                        let pairs = x_and_w(&x[at..at + columns], &values[row..row + columns]);
                        let (sum, sizes) =
                            pairs.fold((0.0, 0.0), |(sum, sizes), p| (sum + p, sizes + p.abs()));
                        let tolerance =
                            4.0 * f64::from(f32::EPSILON) * (columns as f64).sqrt() * sizes + 1e-12;
                        let error = (f64::from(*y) - sum).abs();
                        assert!(
                            error <= tolerance,
                            "{name} [{rows}, {columns}] × {n}: {y} {sum} at {i}"
                        );
                    }
                }
            });
        }
    }

    /// Vectors are taken in groups; each has the sums that it has alone.
    #[test]
    fn vectors_beyond_the_cache_have_the_same_products() {
        let (rows, columns) = (5, 1 << 15);
        let n = NUMBERS_AT_ONCE / columns + 4;
        let numbers: Vec<f32> = noise(1).take(rows * columns).collect();
        let x: Vec<f32> = noise(2).take(n * columns).collect();
        let of = |x: &[f32], threads| {
            let mut y = vec![f32::NAN; x.len() / columns * rows];
            product(Rows::F32(&numbers), columns, x, &mut y, threads);
            y
        };
        let each: Vec<f32> = x.chunks(columns).flat_map(|x| of(x, 1)).collect();
        for threads in [1, 2] {
            assert_eq!(of(&x, threads), each);
        }
    }

    fn first_largest(products: &[f32]) -> Largest {
        let mut largest = Largest { value: products[0], row: 0 };
        for (row, value) in products.iter().copied().enumerate() {
            if value > largest.value {
                largest = Largest { value, row };
            }
        }
        largest
    }

    /// Rows 1 to 79 are equal, 80 is a little larger: rounded, it is not.
    #[test]
    fn the_first_of_equal_products_is_the_largest_and_nan_is_told() {
        let mut matrix = vec![1.0; 100];
        matrix[0] = 0.5;
        matrix[80] = 1.0001;
        let x = [2.0, -2.0, f32::NEG_INFINITY];
        for threads in [1, 2] {
            let of = |matrix: &[f32], precision| {
                largest_products(Rows::F32(matrix), (100, 1), &x, precision, threads)
            };
            let at = |value, row| Largest { value, row };
            let none = f32::NEG_INFINITY;
            let exact = of(&matrix, Precision::F32);
            assert_eq!(exact, [at(2.0002, 80), at(-1.0, 0), at(none, 0)]);
            for precision in [Precision::Bf16, Precision::F16] {
                let rounded = of(&matrix, precision);
                assert_eq!(rounded, [at(2.0, 1), at(-1.0, 0), at(none, 0)]);
            }
            let mut broken = matrix.clone();
            broken[40] = f32::NAN;
            let broken = of(&broken, Precision::F32);
            assert!(broken.iter().all(|one| one.value.is_nan() && one.row == 40));
        }
    }

    fn x_and_w<'a>(x: &'a [f32], w: &'a [f32]) -> impl Iterator<Item = f64> + 'a {
        x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w))
    }

    #[test]
    #[should_panic(expected = "the matrix is not of this size")]
    fn parts_of_the_wrong_length_are_refused() {
        let (scales, quants) = ([0; 2], [0; 32]);
        product(Rows::Q8_0 { scales: &scales, quants: &quants }, 32, &[0.0; 32], &mut [0.0], 1);
    }
}
