//! Expands numbers in AVX2 registers right before the product, without writing them to memory.
//!
//! The numbers and the order of the sums are the same as with expansion in the cache, so the results are the same. Numbers in four bits
//! (`nibbles`) are the exception.

use std::ops::Range;

use pulp::x86::V3;
use pulp::{Arch, NullaryFnOnce, Simd, cast, f32x8, u16x8};

use super::few::{LANES, LINE, Parts, ROWS, VECTORS, each, tiles};
use super::nibbles::Nibbles;
use super::{Chunk, Scratches};
use crate::rows::{BLOCK, Offsets, Rows, SUPER_BLOCK, Scratch, halves_into};

/// Returns AVX2 if this module expands the chunk's kind of numbers, vectors are few or rounded, and the CPU has it.
pub(crate) fn in_registers(chunk: &Chunk) -> Option<V3> {
    let is_known = match chunk.matrix {
        Rows::Bf16(_) | Rows::Q8_0 { .. } | Rows::Q4K { .. } | Rows::Q6K { .. } => true,
        Rows::Nibbles { fifth_bits, .. } => fifth_bits.is_none(),
        Rows::F32(_) | Rows::F16(_) => false,
    };
    let is_known = is_known && chunk.x.n <= VECTORS && chunk.x.columns.is_multiple_of(LANES);
    if let Some(simd) = chunk.x.rounded.simd {
        return Some(simd);
    }
    match Arch::new() {
        Arch::V3(simd) if is_known => Some(simd),
        _ => None,
    }
}

/// A chunk to compute with AVX2.
pub(crate) struct InRegisters<'a> {
    pub(crate) simd: V3,
    pub(crate) chunk: Chunk<'a>,
}

impl NullaryFnOnce for InRegisters<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, chunk } = self;
        let (columns, n) = (chunk.x.columns, chunk.rows());
        let Chunk { matrix, first, x, y, scratch: Scratches { rows: [scratch, ..], .. } } = chunk;
        // the chunk's range in an array with `of` entries per `numbers` numbers
        let own = |numbers: usize, of: usize| {
            first * columns / numbers * of..(first + n) * columns / numbers * of
        };
        let Scratch { numbers: floats, scales, .. } = scratch;
        let none: [&[f32]; ROWS] = [&[]; ROWS];
        match matrix {
            Rows::Bf16(bits) => {
                let (bits, parts) = (bits[own(1, 1)].as_chunks().0, columns / LANES);
                for (rows, tile) in tiles(&matrix, first, x, y) {
                    let rows = each(rows, |row| Bf16(of_row(bits, row, parts)));
                    tile.compute::<V3, 1, _>(simd, rows, none);
                }
            }
            Rows::Q8_0 { scales: d, quants } => {
                halves_into(&d[own(BLOCK, 1)], scales);
                let (quants, blocks) = (quants[own(1, 1)].as_chunks().0, columns / BLOCK);
                for (rows, tile) in tiles(&matrix, first, x, y) {
                    let rows = each(rows, |row| Eights {
                        quants: of_row(quants, row, blocks),
                        scales: of_row(scales, row, blocks),
                    });
                    tile.compute::<V3, 2, _>(simd, rows, none);
                }
            }
            Rows::Nibbles { .. } => {
                let quants = four_bits(simd, &matrix, own(1, 1), scratch);
                let (d, m) = (scratch.scales.as_chunks::<1>().0, scratch.offsets.as_chunks().0);
                let (quants, blocks) = (quants.as_chunks::<16>().0, columns / BLOCK);
                for (rows, tile) in tiles(&matrix, first, x, y) {
                    let rows = each(rows, |row| Nibbles {
                        quants: of_row(quants, row, blocks),
                        scales: of_row(d, row, blocks),
                        offsets: of_row(m, row, blocks),
                    });
                    tile.compute_nibbles(simd, rows);
                }
            }
            Rows::Q4K { .. } => {
                let quants = four_bits(simd, &matrix, own(1, 1), scratch);
                let (s, e) = (scratch.scales.as_chunks::<2>().0, scratch.offsets.as_chunks().0);
                let (quants, blocks) = (quants.as_chunks::<32>().0, columns / 64);
                for (rows, tile) in tiles(&matrix, first, x, y) {
                    let rows = each(rows, |row| Nibbles {
                        quants: of_row(quants, row, blocks),
                        scales: of_row(s, row, blocks),
                        offsets: of_row(e, row, blocks),
                    });
                    tile.compute_nibbles(simd, rows);
                }
            }
            Rows::Q6K { scales: d, inner_scales, quants } => {
                let own_scales = (&d[own(SUPER_BLOCK, 1)], &inner_scales[own(SUPER_BLOCK, 16)]);
                inner_into(simd, own_scales, 1.0, |s| signed(simd, s), floats, scales);
                let (quants, parts) = (quants[own(1, 1)].as_chunks().0, columns / LANES);
                for (rows, tile) in tiles(&matrix, first, x, y) {
                    let rows = each(rows, |row| Sixes {
                        quants: of_row(quants, row, parts),
                        scales: of_row(scales, row, parts),
                    });
                    tile.compute::<V3, 1, _>(simd, rows, none);
                }
            }
            Rows::F32(_) | Rows::F16(_) => unreachable!("invariant: checked before"),
        }
    }
}

/// The elements of a row; every row has `each` elements.
#[inline(always)]
fn of_row<T>(all: &[T], row: usize, each: usize) -> &[T] {
    &all[row * each..][..each]
}

/// The bytes of some numbers in four bits, a range of whole blocks of the matrix. Their `d` and `m`, one of each for 32 numbers, are written to
/// the scales and offsets of `scratch`.
#[inline(always)]
pub(crate) fn four_bits<'a>(
    simd: V3,
    matrix: &Rows<'a>,
    numbers: Range<usize>,
    scratch: &mut Scratch,
) -> &'a [u8] {
    let Scratch { numbers: floats, scales, offsets, .. } = scratch;
    let per = |n: usize| numbers.start / n..numbers.end / n;
    match matrix {
        Rows::Nibbles { scales: d, offsets: m, quants, .. } => {
            halves_into(&d[per(BLOCK)], scales);
            match m {
                Offsets::Zero(zero) => {
                    offsets.clear();
                    offsets.extend(scales.iter().map(|d| -f32::from(*zero) * d));
                }
                Offsets::Each(m) => halves_into(&m[per(BLOCK)], offsets),
            }
            &quants[per(2)]
        }
        Rows::Q4K { scales: d, offsets: m, inner_scales, inner_offsets, quants } => {
            let wide = |s| unsigned(simd, s);
            let own = (&d[per(SUPER_BLOCK)], &inner_scales[per(BLOCK)]);
            inner_into(simd, own, 1.0, wide, floats, scales);
            let own = (&m[per(SUPER_BLOCK)], &inner_offsets[per(BLOCK)]);
            inner_into(simd, own, -1.0, wide, floats, offsets);
            &quants[per(2)]
        }
        _ => unreachable!("invariant: its integers have four bits"),
    }
}

/// `sign·d·s` for a whole number of times eight inner scales `s` of each `d`, which `widened` expands; `floats` is memory for `d` in f32.
#[inline(always)]
fn inner_into<T: Copy>(
    simd: V3,
    (d, inner): (&[u16], &[T]),
    sign: f32,
    widened: impl Fn([T; 8]) -> f32x8,
    floats: &mut Vec<f32>,
    out: &mut Vec<f32>,
) {
    halves_into(d, floats);
    out.resize(inner.len(), 0.0);
    let (outs, eights) = (out.as_chunks_mut::<8>().0, inner.as_chunks::<8>().0);
    let per_scale = eights.len() / d.len().max(1);
    let outs = outs.chunks_exact_mut(per_scale.max(1));
    for ((d, outs), eights) in floats.iter().zip(outs).zip(eights.chunks_exact(per_scale.max(1))) {
        let d = simd.splat_f32x8(sign * d);
        for (out, eight) in outs.iter_mut().zip(eights) {
            *out = cast(simd.mul_f32x8(widened(*eight), d));
        }
    }
}

/// bf16: the upper 16 bits of f32 numbers.
#[derive(Clone, Copy)]
struct Bf16<'a>(&'a [[u16; LANES]]);

impl Parts<V3> for Bf16<'_> {
    type Part = [f32x8; 2];
    const LINES: usize = ROWS * LANES * size_of::<u16>() / LINE;

    #[inline(always)]
    fn part(self, simd: V3, i: usize) -> Self::Part {
        let [low, high]: [u16x8; 2] = cast(self.0[i]);
        [widened(simd, low), widened(simd, high)]
    }
}

#[inline(always)]
fn widened(simd: V3, bits: u16x8) -> f32x8 {
    cast(simd.shl_const_u32x8::<16>(simd.convert_u16x8_to_u32x8(bits)))
}

/// [`Rows::Q8_0`].
#[derive(Clone, Copy)]
struct Eights<'a> {
    quants: &'a [[i8; BLOCK]],
    scales: &'a [f32],
}

impl Parts<V3> for Eights<'_> {
    type Part = [f32x8; 4];
    const LINES: usize = ROWS * BLOCK / LINE;

    #[inline(always)]
    fn part(self, simd: V3, i: usize) -> Self::Part {
        let [a, b, c, d]: [[i8; 8]; 4] = cast(self.quants[i]);
        let s = simd.splat_f32s(self.scales[i]);
        let scaled = |q| simd.mul_f32x8(signed(simd, q), s);
        [scaled(a), scaled(b), scaled(c), scaled(d)]
    }
}

/// [`Rows::Q6K`], with the products `d·s` as scales.
#[derive(Clone, Copy)]
struct Sixes<'a> {
    quants: &'a [[i8; LANES]],
    scales: &'a [f32],
}

impl Parts<V3> for Sixes<'_> {
    type Part = [f32x8; 2];
    const LINES: usize = ROWS * LANES / LINE;

    #[inline(always)]
    fn part(self, simd: V3, i: usize) -> Self::Part {
        let [a, b]: [[i8; 8]; 2] = cast(self.quants[i]);
        let s = simd.splat_f32s(self.scales[i]);
        [simd.mul_f32x8(signed(simd, a), s), simd.mul_f32x8(signed(simd, b), s)]
    }
}

/// Integers with a sign.
#[inline(always)]
fn signed(simd: V3, q: [i8; 8]) -> f32x8 {
    simd.convert_i32x8_to_f32x8(simd.convert_i8x16_to_i32x8(cast([q, [0; 8]])))
}

/// Integers without a sign.
#[inline(always)]
fn unsigned(simd: V3, q: [u8; 8]) -> f32x8 {
    simd.convert_i32x8_to_f32x8(simd.convert_u8x16_to_i32x8(cast([q, [0; 8]])))
}
