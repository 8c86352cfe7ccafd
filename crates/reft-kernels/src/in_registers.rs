//! Expands numbers in AVX2 registers right before the product, without writing them to memory.
//!
//! Numbers and order of the sums are the same as with expansion in the cache, so the results are, too.

use pulp::x86::V3;
use pulp::{Arch, NullaryFnOnce, Simd, cast, f32x8, u16x8};

use crate::product::{Chunk, LANES, LINE, Parts, TILE, VECTORS, tiles};
use crate::rows::{BLOCK, Offsets, Rows, SUPER_BLOCK, halves_into};

/// Returns AVX2 if this module expands the chunk's kind of numbers, vectors are few, and the CPU has it.
pub(crate) fn in_registers(chunk: &Chunk) -> Option<V3> {
    let is_known = match chunk.matrix {
        Rows::Bf16(_) | Rows::Q8_0 { .. } | Rows::Q4K { .. } | Rows::Q6K { .. } => true,
        Rows::Nibbles { fifth_bits, .. } => fifth_bits.is_none(),
        Rows::F32(_) | Rows::F16(_) => false,
    };
    let is_known = is_known && chunk.x.n <= VECTORS && chunk.x.columns.is_multiple_of(LANES);
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
        let Chunk { matrix, first, x, y, scratch: [scratch, ..] } = chunk;
        // the chunk's range in an array with `of` entries per `numbers` numbers
        let own = |numbers: usize, of: usize| {
            first * columns / numbers * of..(first + n) * columns / numbers * of
        };
        let (scales, offsets) = (&mut scratch.scales, &mut scratch.offsets);
        let none: [&[f32]; TILE] = [&[]; TILE];
        match matrix {
            Rows::Bf16(bits) => {
                let (bits, parts) = (bits[own(1, 1)].as_chunks().0, columns / LANES);
                for (rows, tile) in tiles(&matrix, first, x, y) {
                    let rows = rows.map(|row| Bf16(of_row(bits, row, parts)));
                    tile.compute::<V3, 1, _>(simd, rows, none);
                }
            }
            Rows::Q8_0 { scales: d, quants } => {
                halves_into(&d[own(BLOCK, 1)], scales);
                let (quants, blocks) = (quants[own(1, 1)].as_chunks().0, columns / BLOCK);
                for (rows, tile) in tiles(&matrix, first, x, y) {
                    let rows = rows.map(|row| Eights {
                        quants: of_row(quants, row, blocks),
                        scales: of_row(scales, row, blocks),
                    });
                    tile.compute::<V3, 2, _>(simd, rows, none);
                }
            }
            Rows::Nibbles { scales: d, offsets: m, quants, .. } => {
                halves_into(&d[own(BLOCK, 1)], scales);
                let zero = match m {
                    Offsets::Zero(zero) => {
                        offsets.clear();
                        offsets.resize(scales.len(), 0.0);
                        f32::from(zero)
                    }
                    Offsets::Each(m) => {
                        halves_into(&m[own(BLOCK, 1)], offsets);
                        0.0
                    }
                };
                let (quants, blocks) = (quants[own(2, 1)].as_chunks().0, columns / BLOCK);
                for (rows, tile) in tiles(&matrix, first, x, y) {
                    let rows = rows.map(|row| Fours {
                        quants: of_row(quants, row, blocks),
                        scales: of_row(scales, row, blocks),
                        offsets: of_row(offsets, row, blocks),
                        zero,
                    });
                    tile.compute::<V3, 2, _>(simd, rows, none);
                }
            }
            Rows::Q4K { scales: d, offsets: m, inner_scales, inner_offsets, quants } => {
                let inner = own(SUPER_BLOCK, 8);
                inner_into(&d[own(SUPER_BLOCK, 1)], &inner_scales[inner.clone()], scales);
                inner_into(&m[own(SUPER_BLOCK, 1)], &inner_offsets[inner], offsets);
                let (s, e) = (scales.as_chunks().0, offsets.as_chunks().0);
                let (quants, blocks) = (quants[own(2, 1)].as_chunks().0, columns / 64);
                for (rows, tile) in tiles(&matrix, first, x, y) {
                    let rows = rows.map(|row| FoursOfTwo {
                        quants: of_row(quants, row, blocks),
                        scales: of_row(s, row, blocks),
                        offsets: of_row(e, row, blocks),
                    });
                    tile.compute::<V3, 4, _>(simd, rows, none);
                }
            }
            Rows::Q6K { scales: d, inner_scales, quants } => {
                inner_into(&d[own(SUPER_BLOCK, 1)], &inner_scales[own(SUPER_BLOCK, 16)], scales);
                let (quants, parts) = (quants[own(1, 1)].as_chunks().0, columns / LANES);
                for (rows, tile) in tiles(&matrix, first, x, y) {
                    let rows = rows.map(|row| Sixes {
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

/// `d·s` for each inner scale `s`; every `d` has equally many.
fn inner_into<T: Copy>(d: &[u16], inner: &[T], out: &mut Vec<f32>)
where
    f32: From<T>,
{
    halves_into(d, out);
    let each = inner.len() / d.len().max(1);
    *out = inner.iter().enumerate().map(|(i, s)| f32::from(*s) * out[i / each]).collect();
}

/// bf16: the upper 16 bits of f32 numbers.
#[derive(Clone, Copy)]
struct Bf16<'a>(&'a [[u16; LANES]]);

impl Parts<V3> for Bf16<'_> {
    type Part = [f32x8; 2];
    const LINES: usize = TILE * LANES * size_of::<u16>() / LINE;

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
    const LINES: usize = TILE * BLOCK / LINE;

    #[inline(always)]
    fn part(self, simd: V3, i: usize) -> Self::Part {
        let [a, b, c, d]: [[i8; 8]; 4] = cast(self.quants[i]);
        let s = simd.splat_f32s(self.scales[i]);
        [signed(simd, a, s), signed(simd, b, s), signed(simd, c, s), signed(simd, d, s)]
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
    const LINES: usize = TILE * LANES / LINE;

    #[inline(always)]
    fn part(self, simd: V3, i: usize) -> Self::Part {
        let [a, b]: [[i8; 8]; 2] = cast(self.quants[i]);
        let s = simd.splat_f32s(self.scales[i]);
        [signed(simd, a, s), signed(simd, b, s)]
    }
}

/// `q·s` of integers with a sign.
#[inline(always)]
fn signed(simd: V3, q: [i8; 8], s: f32x8) -> f32x8 {
    let q = simd.convert_i8x16_to_i32x8(cast([q, [0; 8]]));
    simd.mul_f32s(simd.convert_i32x8_to_f32x8(q), s)
}

/// [`Rows::Nibbles`] without fifth bits.
#[derive(Clone, Copy)]
struct Fours<'a> {
    quants: &'a [[u8; 16]],
    scales: &'a [f32],
    offsets: &'a [f32],
    zero: f32,
}

impl Parts<V3> for Fours<'_> {
    type Part = [f32x8; 4];
    const LINES: usize = TILE * BLOCK / 2 / LINE;

    #[inline(always)]
    fn part(self, simd: V3, i: usize) -> Self::Part {
        let (low, high) = halves(simd, self.quants[i]);
        let zero = simd.splat_f32s(self.zero);
        let (d, m) = (simd.splat_f32s(self.scales[i]), simd.splat_f32s(self.offsets[i]));
        let value = Scaled { simd, zero, d, m };
        [value.of(low.0), value.of(low.1), value.of(high.0), value.of(high.1)]
    }
}

struct Scaled {
    simd: V3,
    zero: f32x8,
    d: f32x8,
    m: f32x8,
}

impl Scaled {
    /// `(q − zero)·d + m`.
    #[inline(always)]
    fn of(&self, q: [u8; 8]) -> f32x8 {
        let Self { simd, zero, d, m } = *self;
        simd.add_f32s(simd.mul_f32s(simd.sub_f32s(unsigned(simd, q), zero), d), m)
    }
}

/// [`Rows::Q4K`], with the products `d·s` and `e·m` as scales and offsets, two per 64 numbers.
#[derive(Clone, Copy)]
struct FoursOfTwo<'a> {
    quants: &'a [[u8; 32]],
    scales: &'a [[f32; 2]],
    offsets: &'a [[f32; 2]],
}

impl Parts<V3> for FoursOfTwo<'_> {
    type Part = [f32x8; 8];
    const LINES: usize = TILE * BLOCK / LINE;

    #[inline(always)]
    fn part(self, simd: V3, i: usize) -> Self::Part {
        let [front, back]: [[u8; 16]; 2] = cast(self.quants[i]);
        let ((a, c), (b, d)) = (halves(simd, front), halves(simd, back));
        let ([s, other_s], [e, other_e]) = (self.scales[i], self.offsets[i]);
        let low = Less { simd, s: simd.splat_f32s(s), e: simd.splat_f32s(e) };
        let high = Less { simd, s: simd.splat_f32s(other_s), e: simd.splat_f32s(other_e) };
        [
            low.of(a.0),
            low.of(a.1),
            low.of(b.0),
            low.of(b.1),
            high.of(c.0),
            high.of(c.1),
            high.of(d.0),
            high.of(d.1),
        ]
    }
}

struct Less {
    simd: V3,
    s: f32x8,
    e: f32x8,
}

impl Less {
    /// `q·s − e`.
    #[inline(always)]
    fn of(&self, q: [u8; 8]) -> f32x8 {
        self.simd.sub_f32s(self.simd.mul_f32s(unsigned(self.simd, q), self.s), self.e)
    }
}

/// Integers without a sign.
#[inline(always)]
fn unsigned(simd: V3, q: [u8; 8]) -> f32x8 {
    simd.convert_i32x8_to_f32x8(simd.convert_u8x16_to_i32x8(cast([q, [0; 8]])))
}

/// Eight integers and eight more.
type Pair = ([u8; 8], [u8; 8]);

/// The low four bits of 16 bytes, and the high four bits.
#[inline(always)]
fn halves(simd: V3, q: [u8; 16]) -> (Pair, Pair) {
    let fours = simd.splat_u8x16(15);
    let low: [[u8; 8]; 2] = cast(simd.and_u8x16(cast(q), fours));
    let high = cast(simd.shr_const_u16x8::<4>(cast(q)));
    let high: [[u8; 8]; 2] = cast(simd.and_u8x16(high, fours));
    ((low[0], low[1]), (high[0], high[1]))
}
