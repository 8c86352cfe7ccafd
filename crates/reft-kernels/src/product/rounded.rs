//! Vectors that are rounded to eight bits, and products of many of them with four-bit integers in AVX2's registers.
//!
//! Each 32 numbers of a vector become `s·p`, with `s = max |x| / 127` and `p` rounded to an integer. With 32 numbers `d·q + m` of a row their sum
//! of products is `d·s·Σ q·p + m·s·Σ p`. Sums of integers are exact. One instruction multiplies 32 integers; for f32 it multiplies eight numbers.

use std::ops::Range;
use std::sync::Mutex;

use pulp::bytemuck::{cast, cast_slice, cast_slice_mut};
use pulp::x86::V3;
use pulp::{NullaryFnOnce, Simd, f32x8, i16x16, i32x8};

use super::in_registers::four_bits;
use super::many::{panels, put};
use super::{CHUNK, Chunk, Scratches, Vectors};
use crate::rows::{BLOCK, Rows, Scratch};
use crate::threads::share_out;

/// Rows of the matrix that are computed together.
pub(crate) const ROWS: usize = 4;
/// Fewest vectors that are put in panels.
pub(crate) const FEW: usize = 8;
/// Vectors in a register.
const LANES: usize = 8;
/// Most vectors of a panel.
const PANEL: usize = 2 * LANES;
/// Integers in a lane.
const QUAD: usize = 4;
/// Blocks of a panel that are multiplied at once: 16 KiB, so that they stay in a first-level cache together with four rows.
const PART: usize = 32;
/// The largest integer. Eight times the sum of two products, `8 · 2 · 15 · 127`, does not exceed 16 bits.
const LARGEST: f32 = 127.0;

/// Vectors as integers. Many are in panels of 16 vectors, the last of which is filled up to 8 or 16 with zeros; each of a few is a panel.
#[derive(Debug, Default)]
pub(crate) struct Rounded {
    /// AVX2, if the vectors are multiplied as integers.
    pub(crate) simd: Option<V3>,
    /// Four integers `p` in 32 bits, `[columns / 4, vectors]` of each panel.
    pub(crate) quads: FromLine<i32>,
    /// `s`, `[blocks, vectors]` of each panel.
    pub(crate) scales: FromLine<f32>,
    /// `s·Σ p`, in the same order.
    pub(crate) sums: FromLine<f32>,
}

/// Numbers from the start of a cache line on: registers that cross lines take two reads.
#[derive(Debug, Default)]
pub(crate) struct FromLine<T> {
    memory: Vec<T>,
    range: Range<usize>,
}

impl<T: Default + Copy> FromLine<T> {
    /// Memory for so many numbers. They are not cleared.
    fn resize(&mut self, n: usize) -> &mut [T] {
        const LINE: usize = 64;
        self.memory.resize(n + LINE / size_of::<T>(), T::default());
        let start = self.memory.as_ptr().align_offset(LINE);
        self.range = start..start + n;
        &mut self.memory[self.range.clone()]
    }

    pub(crate) fn get(&self) -> &[T] {
        &self.memory[self.range.clone()]
    }
}

impl Rounded {
    /// Rounds vectors, if they are to be rounded, the matrix has four-bit integers and the CPU has AVX2. Returns whether they are.
    pub(crate) fn round(
        &mut self,
        vectors: Vectors,
        columns: usize,
        matrix: &Rows,
        threads: usize,
    ) -> bool {
        self.simd = match vectors {
            Vectors::Int8(_) if matrix.has_four_bits() => V3::try_new(),
            _ => None,
        };
        let Some(simd) = self.simd else { return false };
        let x = vectors.numbers();
        let n = x.len() / columns;
        // few vectors stay in order
        let (panel, n) = if n < FEW { (1, n) } else { (PANEL, n.next_multiple_of(LANES)) };
        let quads = self.quads.resize(n * columns / QUAD).chunks_mut(panel * columns / QUAD);
        let scales = self.scales.resize(n * columns / BLOCK).chunks_mut(panel * columns / BLOCK);
        let sums = self.sums.resize(n * columns / BLOCK).chunks_mut(panel * columns / BLOCK);
        let panels = x.chunks(panel * columns).zip(quads).zip(scales.zip(sums));
        share_out(
            threads,
            &Mutex::new(panels),
            || (),
            |(), ((x, quads), (scales, sums))| {
                simd.vectorize(Panel { x, columns, quads, scales, sums });
            },
        );
        true
    }
}

/// A panel to fill with the integers of vectors.
struct Panel<'a> {
    x: &'a [f32],
    columns: usize,
    quads: &'a mut [i32],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
}

impl NullaryFnOnce for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { x, columns, quads, scales, sums } = self;
        let width = scales.len() / (columns / BLOCK);
        if x.len() < width * columns {
            quads.fill(0);
            scales.fill(0.0);
            sums.fill(0.0);
        }
        let of_blocks = scales.chunks_exact_mut(width).zip(sums.chunks_exact_mut(width));
        let of_blocks = of_blocks.zip(quads.chunks_exact_mut(BLOCK / QUAD * width));
        for (block, ((scales, sums), quads)) in of_blocks.enumerate() {
            for (i, x) in x.chunks_exact(columns).enumerate() {
                let (integers, scale) = rounded(&x.as_chunks().0[block]);
                scales[i] = scale;
                sums[i] = scale * integers.iter().map(|p| i32::from(*p)).sum::<i32>() as f32;
                let own: [i32; BLOCK / QUAD] = cast(integers);
                for (quad, to) in own.iter().zip(quads.chunks_exact_mut(width)) {
                    to[i] = *quad;
                }
            }
        }
    }
}

/// `p` and `s` of a block. If a number is not finite, `s` is not finite either.
#[inline(always)]
fn rounded(x: &[f32; BLOCK]) -> ([i8; BLOCK], f32) {
    /// Added to a number, it leaves the nearest integer in the lowest bits.
    const TO_INTEGER: f32 = 1.5 * (1 << 23) as f32;
    // as bits, NaN is larger than any number
    let largest = x.iter().fold(0, |largest, x| largest.max(x.abs().to_bits()));
    let largest = f32::from_bits(largest);
    let factor = if largest == 0.0 { 0.0 } else { LARGEST / largest };
    let mut integers = [0; BLOCK];
    for (integer, x) in integers.iter_mut().zip(x) {
        *integer = (x * factor + TO_INTEGER).to_bits() as i8;
    }
    (integers, largest / LARGEST)
}

/// A row as integers.
#[derive(Clone, Copy)]
struct Row<'a> {
    /// Four integers `q` in 32 bits.
    quads: &'a [i32],
    /// `d` of each block.
    scales: &'a [f32],
    /// `m` of each block.
    offsets: &'a [f32],
}

impl Rows<'_> {
    /// The integers of a row with four bits, their scales and offsets, written to `scratch`.
    #[inline(always)]
    fn integers<'s>(
        &self,
        simd: V3,
        row: usize,
        columns: usize,
        scratch: &'s mut Scratch,
    ) -> Row<'s> {
        let numbers = row * columns..(row + 1) * columns;
        let quants = four_bits(simd, self, numbers, scratch);
        let Scratch { scales, offsets, integers, .. } = scratch;
        integers.resize(columns / QUAD, 0);
        let out: &mut [u8] = cast_slice_mut(integers);
        match self {
            Self::Q4K { .. } => spread::<2>(simd, quants, out),
            _ => spread::<1>(simd, quants, out),
        }
        Row { quads: integers, scales, offsets }
    }
}

/// The low four bits of each `PARTS` times 16 bytes, then the high four.
#[inline(always)]
fn spread<const PARTS: usize>(simd: V3, quants: &[u8], out: &mut [u8]) {
    let of_bytes = quants.as_chunks::<16>().0.as_chunks::<PARTS>().0;
    let outs = out.as_chunks_mut::<16>().0.as_chunks_mut::<PARTS>().0.as_chunks_mut::<2>().0;
    let four_bits = simd.splat_u8x16(15);
    for ([low, high], bytes) in outs.iter_mut().zip(of_bytes) {
        for i in 0..PARTS {
            let upper = simd.shr_const_u16x8::<4>(cast(bytes[i]));
            low[i] = cast(simd.and_u8x16(cast(bytes[i]), four_bits));
            high[i] = cast(simd.and_u8x16(cast(upper), four_bits));
        }
    }
}

/// A chunk to compute with rounded vectors.
pub(crate) struct ByIntegers<'a> {
    pub(crate) simd: V3,
    pub(crate) chunk: Chunk<'a>,
}

impl NullaryFnOnce for ByIntegers<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, chunk: Chunk { matrix, first, x, y, scratch } } = self;
        let Scratches { rows: scratch, sums } = scratch;
        let (n, columns, x) = (x.n, x.columns, &x.rounded);
        let (rows, blocks) = (y.len() / n, columns / BLOCK);
        let tiles = rows.div_ceil(ROWS);
        // the last row is repeated until four are complete
        let mut w = [Row { quads: &[], scales: &[], offsets: &[] }; CHUNK];
        for (i, (w, scratch)) in w.iter_mut().zip(scratch).enumerate().take(tiles * ROWS) {
            *w = matrix.integers(simd, first + i.min(rows - 1), columns, scratch);
        }
        sums.resize(CHUNK * n.next_multiple_of(LANES), 0.0);
        let sums = V3::as_mut_simd_f32s(sums).0;
        let quads = V3::as_simd_i32s(x.quads.get()).0;
        let scales = V3::as_simd_f32s(x.scales.get()).0;
        let x_sums = V3::as_simd_f32s(x.sums.get()).0;
        let w = w[..ROWS * tiles].as_chunks::<ROWS>().0;
        for begin in (0..blocks).step_by(PART) {
            let part = begin..blocks.min(begin + PART);
            for (first, width) in panels(n.div_ceil(LANES)) {
                let sums = &mut sums[first * ROWS * tiles..][..width * ROWS * tiles];
                let x = Registers {
                    quads: &quads[first * columns / QUAD..][..width * columns / QUAD],
                    scales: &scales[first * blocks..][..width * blocks],
                    sums: &x_sums[first * blocks..][..width * blocks],
                };
                match width {
                    1 => add_part::<1>(simd, w, &part, x, sums),
                    _ => add_part::<2>(simd, w, &part, x, sums),
                }
            }
        }
        put::<ROWS>(cast_slice(sums), n, LANES, y);
    }
}

/// A panel in registers.
#[derive(Clone, Copy)]
struct Registers<'a> {
    quads: &'a [i32x8],
    scales: &'a [f32x8],
    sums: &'a [f32x8],
}

/// Adds the products of some blocks to the sums `[tiles, ROWS, M]`; the first blocks' are the sums.
#[inline(always)]
fn add_part<const M: usize>(
    simd: V3,
    w: &[[Row; ROWS]],
    part: &Range<usize>,
    x: Registers,
    sums: &mut [f32x8],
) {
    let quads = x.quads.as_chunks::<M>().0;
    let (scales, x_sums) = (x.scales.as_chunks::<M>().0, x.sums.as_chunks::<M>().0);
    let sums = sums.as_chunks_mut::<M>().0.as_chunks_mut::<ROWS>().0;
    // a constant would have the loop over a block unrolled, and registers would not suffice
    let per_block = quads.len() / scales.len();
    for (w, sums) in w.iter().zip(sums) {
        let mut acc = if part.start == 0 { [[simd.splat_f32x8(0.0); M]; ROWS] } else { *sums };
        for block in part.clone() {
            let at = block * per_block;
            let products = products(simd, w, at, &quads[at..at + per_block]);
            for r in 0..ROWS {
                let d = simd.splat_f32x8(w[r].scales[block]);
                let offset = simd.splat_f32x8(w[r].offsets[block]);
                for m in 0..M {
                    let scaled = simd.mul_f32x8(products[r][m], scales[block][m]);
                    acc[r][m] = simd.mul_add_f32x8(scaled, d, acc[r][m]);
                    acc[r][m] = simd.mul_add_f32x8(x_sums[block][m], offset, acc[r][m]);
                }
            }
        }
        *sums = acc;
    }
}

/// `Σ q·p` of a block, whose integers begin at `first`.
#[inline(always)]
fn products<const M: usize>(
    simd: V3,
    w: &[Row; ROWS],
    first: usize,
    x: &[[i32x8; M]],
) -> [[f32x8; M]; ROWS] {
    let [a, b, c, d] = w.map(|w| &w.quads[first..][..x.len()]);
    let mut acc = [[simd.splat_i16x16(0); M]; ROWS];
    let rows = a.iter().zip(b).zip(c).zip(d);
    for ((((a, b), c), d), x) in rows.zip(x) {
        for (acc, w) in acc.iter_mut().zip([a, b, c, d]) {
            let w = simd.splat_i32x8(*w);
            for m in 0..M {
                let pairs: i16x16 = cast(simd.avx2._mm256_maddubs_epi16(cast(w), cast(x[m])));
                acc[m] = simd.wrapping_add_i16x16(acc[m], pairs);
            }
        }
    }
    let ones = simd.splat_i16x16(1);
    let mut sums = [[simd.splat_f32x8(0.0); M]; ROWS];
    for r in 0..ROWS {
        for m in 0..M {
            let of_quads = simd.avx2._mm256_madd_epi16(cast(acc[r][m]), cast(ones));
            sums[r][m] = simd.convert_i32x8_to_f32x8(cast(of_quads));
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::super::many::MANY;
    use super::super::product;
    use super::super::tests::each_kind;
    use super::*;
    use crate::noise::noise;

    #[test]
    fn the_largest_number_of_a_block_is_the_largest_integer_and_the_others_are_nearest() {
        let mut x = [0.0; BLOCK];
        assert_eq!(rounded(&x), ([0; BLOCK], 0.0));
        x[1..5].copy_from_slice(&[0.5, -1.5, 0.75, 1e-6]);
        let (integers, scale) = rounded(&x);
        assert_eq!(integers[..5], [0, 42, -127, 64, 0]); // 42.33; 63.5 goes to the even one
        assert_eq!(scale, 1.5 / 127.0);
        for number in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[7] = number;
            assert!(!rounded(&x).1.is_finite(), "{number}");
        }
    }

    /// Sums of integers are exact, also of the largest ones. What is left are f32 roundings of the blocks' products and of their sum.
    #[test]
    fn products_are_those_of_the_rounded_vectors() {
        if V3::try_new().is_none() {
            return;
        }
        let (rows, columns, n) = (27, 1280, MANY + 9);
        let mut x: Vec<f32> = noise(3).take(n * columns).collect();
        x[..2 * BLOCK].fill(0.7);
        let blocks = x.as_chunks().0.iter().map(rounded);
        let nearest: Vec<f64> = blocks
            .flat_map(|(integers, scale)| integers.map(|p| f64::from(p) * f64::from(scale)))
            .collect();
        each_kind(rows, columns, |name, matrix, values| {
            if !matrix.has_four_bits() {
                return;
            }
            let mut y = vec![f32::NAN; n * rows];
            product(matrix, columns, Vectors::Int8(&x), &mut y, 1);
            for (i, y) in y.into_iter().enumerate() {
                let x = nearest[i / rows * columns..].iter();
                let w = &values[i % rows * columns..][..columns];
                let products = x.zip(w).map(|(x, w)| x * f64::from(*w));
                let (sum, sizes) =
                    products.fold((0.0, 0.0), |(sum, sizes), p| (sum + p, sizes + p.abs()));
                // d·q and m can be larger than their sum
                let tolerance = 16.0 * f64::from(f32::EPSILON) * sizes;
                assert!((f64::from(y) - sum).abs() <= tolerance, "{name}: {y} {sum} at {i}");
            }
        });
    }

    #[test]
    fn a_number_that_is_not_finite_reaches_the_products_of_its_vector_only() {
        let (rows, columns, n) = (3, 256, MANY);
        each_kind(rows, columns, |name, matrix, _| {
            for number in [f32::NAN, f32::INFINITY] {
                let mut x: Vec<f32> = noise(4).take(n * columns).collect();
                x[5 * columns + 70] = number;
                let mut y = vec![0.0; n * rows];
                product(matrix, columns, Vectors::Int8(&x), &mut y, 1);
                for (i, y) in y.iter().enumerate() {
                    assert_eq!(y.is_finite(), i / rows != 5, "{name}: {y} at {i}");
                }
            }
        });
    }
}
