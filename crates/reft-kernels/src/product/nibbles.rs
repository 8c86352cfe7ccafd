//! Products with numbers in four bits, one to three vectors or rounded ones, in AVX2's registers.
//!
//! A row's blocks hold numbers `d·q + m` with one `d` and one `m` for 32 of them. So `Σ (d·q + m)·x` is `d·Σ q·x + m·Σ x`: integers are
//! multiplied as they are, and `Σ x` is the same for every row.

use pulp::x86::V3;
use pulp::{Simd, cast, f32x8, i32x8, u8x16, u8x32, u32x8};

use super::few::{LINE, ROWS, Tile, VECTORS, fetch, widths};
use crate::rows::BLOCK;

/// Bytes that are expanded at once.
const EIGHT: usize = 8;

/// A row in groups of `BYTES` bytes: the low four bits of all of them, then the high four, have `SCALES` scales and offsets in order.
#[derive(Clone, Copy)]
pub(crate) struct Nibbles<'a, const BYTES: usize, const SCALES: usize> {
    /// `q`, two in a byte.
    pub(crate) quants: &'a [[u8; BYTES]],
    /// `d`.
    pub(crate) scales: &'a [[f32; SCALES]],
    /// `m`.
    pub(crate) offsets: &'a [[f32; SCALES]],
}

impl Tile<'_> {
    /// Multiplies four rows of nibbles with up to three vectors.
    #[inline(always)]
    pub(crate) fn compute_nibbles<const BYTES: usize, const SCALES: usize>(
        self,
        simd: V3,
        rows: [Nibbles<BYTES, SCALES>; ROWS],
    ) {
        if self.x.rounded.simd.is_some() {
            return self.of_integers(simd, rows);
        }
        match self.x.n {
            1 => self.of_vectors::<1, BYTES, SCALES>(simd, rows),
            2 => self.of_vectors::<2, BYTES, SCALES>(simd, rows),
            _ => self.of_vectors::<3, BYTES, SCALES>(simd, rows),
        }
    }

    #[inline(always)]
    fn of_vectors<const M: usize, const BYTES: usize, const SCALES: usize>(
        self,
        simd: V3,
        rows: [Nibbles<BYTES, SCALES>; ROWS],
    ) {
        let Self { x, y, next } = self;
        let (numbers, _) = V3::as_simd_f32s(&x.numbers);
        let zero = simd.splat_f32x8(0.0);
        let mut acc = [[zero; M]; ROWS];
        let per_group = 2 * BYTES / EIGHT * M;
        for (group, own) in numbers.chunks_exact(per_group).enumerate() {
            for line in 0..ROWS * BYTES / LINE {
                fetch(next.as_ptr().wrapping_add((group * ROWS * BYTES / LINE + line) * LINE));
            }
            let [a, b, c, d] = acc;
            acc = [
                rows[0].add_group(simd, group, own, a),
                rows[1].add_group(simd, group, own, b),
                rows[2].add_group(simd, group, own, c),
                rows[3].add_group(simd, group, own, d),
            ];
        }
        let there = y.len() / M;
        for i in 0..there {
            let (acc, row) = (acc[i], &rows[i]);
            let offsets = row.offsets.as_flattened();
            for (m, acc) in acc.into_iter().enumerate() {
                let sums = &x.sums[m * offsets.len()..][..offsets.len()];
                y[m * there + i] = simd.reduce_sum_f32s(acc) + dot(simd, offsets, sums);
            }
        }
    }
}

impl Tile<'_> {
    /// Multiplies four rows of nibbles with vectors that are rounded to integers.
    #[inline(always)]
    fn of_integers<const BYTES: usize, const SCALES: usize>(
        self,
        simd: V3,
        rows: [Nibbles<BYTES, SCALES>; ROWS],
    ) {
        let Self { x, y, next } = self;
        let there = y.len() / x.n;
        let blocks = x.columns / BLOCK;
        let integers = x.rounded.quads.get();
        let (scales, sums) = (x.rounded.scales.get(), x.rounded.sums.get());
        let mut begin = 0;
        for m in widths(x.n) {
            let own = Integers {
                numbers: V3::as_simd_i32s(&integers[begin * x.columns / 4..]).0,
                scales: &scales[begin * blocks..],
                groups: blocks / SCALES,
            };
            let next = if begin == 0 { next } else { &[] };
            let acc = match m {
                1 => own.products::<1, BYTES, SCALES>(simd, &rows, next),
                2 => own.products::<2, BYTES, SCALES>(simd, &rows, next),
                _ => own.products::<3, BYTES, SCALES>(simd, &rows, next),
            };
            for (i, row) in rows.iter().enumerate().take(there) {
                let offsets = row.offsets.as_flattened();
                for m in begin..begin + m {
                    let sums = &sums[m * blocks..][..blocks];
                    y[m * there + i] = acc[m - begin][i] + dot(simd, offsets, sums);
                }
            }
            begin += m;
        }
    }
}

/// Vectors that are rounded to integers, from one of them on.
struct Integers<'a> {
    /// 32 integers in each register.
    numbers: &'a [i32x8],
    /// The scale of each block of each vector.
    scales: &'a [f32],
    /// Groups of a row's blocks.
    groups: usize,
}

impl Integers<'_> {
    /// `Σ d·s·Σ q·p` of four rows and each of `M` vectors: `[vectors, rows]`, the last ones 0.
    #[inline(always)]
    fn products<'a, const M: usize, const BYTES: usize, const SCALES: usize>(
        &self,
        simd: V3,
        rows: &[Nibbles<'a, BYTES, SCALES>; ROWS],
        next: &[u8],
    ) -> [[f32; ROWS]; VECTORS] {
        let groups = self.groups;
        let of_row =
            |row: &Nibbles<'a, BYTES, SCALES>| (&row.quants[..groups], &row.scales[..groups]);
        let rows = [of_row(&rows[0]), of_row(&rows[1]), of_row(&rows[2]), of_row(&rows[3])];
        let all = self.numbers.as_chunks::<SCALES>().0;
        let all_scales = self.scales.as_chunks::<SCALES>().0;
        let (mut numbers, mut scales) = ([&all[..0]; M], [&all_scales[..0]; M]);
        for m in 0..M {
            numbers[m] = &all[m * groups..][..groups];
            scales[m] = &all_scales[m * groups..][..groups];
        }
        let mut acc = [[simd.splat_f32x8(0.0); M]; ROWS];
        let ones = simd.splat_i16x16(1);
        for group in 0..groups {
            for line in 0..ROWS * BYTES / LINE {
                fetch(next.as_ptr().wrapping_add((group * ROWS * BYTES / LINE + line) * LINE));
            }
            for r in 0..ROWS {
                let (quants, d) = rows[r];
                let q = spread::<BYTES, SCALES>(simd, &quants[group]);
                for m in 0..M {
                    for k in 0..SCALES {
                        let pairs =
                            simd.avx2._mm256_maddubs_epi16(cast(q[k]), cast(numbers[m][group][k]));
                        let sums = simd.avx2._mm256_madd_epi16(pairs, cast(ones));
                        let scale = simd.splat_f32x8(d[group][k] * scales[m][group][k]);
                        let sums = simd.convert_i32x8_to_f32x8(cast(sums));
                        acc[r][m] = simd.mul_add_f32x8(sums, scale, acc[r][m]);
                    }
                }
            }
        }
        let mut products = [[0.0; ROWS]; VECTORS];
        for m in 0..M {
            for r in 0..ROWS {
                products[m][r] = simd.reduce_sum_f32s(acc[r][m]);
            }
        }
        products
    }
}

/// The low four bits of bytes, then the high four, 32 in each register.
#[inline(always)]
fn spread<const BYTES: usize, const REGISTERS: usize>(
    simd: V3,
    bytes: &[u8; BYTES],
) -> [u8x32; REGISTERS] {
    let mut q = [simd.splat_u8x32(0); REGISTERS];
    let four_bits = simd.splat_u8x32(15);
    let all: u8x32 = match BYTES {
        16 => {
            let half: [u8; 16] = *bytes.first_chunk().expect("invariant: 16 bytes");
            cast([half, half])
        }
        _ => cast(*bytes.first_chunk::<32>().expect("invariant: 16 or 32 bytes")),
    };
    let high = simd.and_u8x32(cast(simd.shr_const_u16x16::<4>(cast(all))), four_bits);
    let low = simd.and_u8x32(all, four_bits);
    if BYTES == 16 {
        let ([low, _], [_, high]): ([u8x16; 2], [u8x16; 2]) = (cast(low), cast(high));
        q[0] = cast([low, high]);
    } else {
        (q[0], q[REGISTERS - 1]) = (low, high);
    }
    q
}

impl<const BYTES: usize, const SCALES: usize> Nibbles<'_, BYTES, SCALES> {
    /// Adds `d·Σ q·x` of a group and each of `M` vectors, whose numbers are interleaved by 16.
    #[inline(always)]
    fn add_group<const M: usize>(
        &self,
        simd: V3,
        group: usize,
        x: &[f32x8],
        mut acc: [f32x8; M],
    ) -> [f32x8; M] {
        let bytes = &self.quants[group];
        let mut sums = [[simd.splat_f32x8(0.0); M]; SCALES];
        for eight in 0..BYTES / EIGHT {
            let (low, high) = integers(simd, &bytes[eight * EIGHT..][..EIGHT]);
            let at = |eight: usize, m: usize| (eight / 2 * M + m) * 2 + eight % 2;
            for m in 0..M {
                sums[0][m] = simd.mul_add_f32x8(low, x[at(eight, m)], sums[0][m]);
                let x = x[at(BYTES / EIGHT + eight, m)];
                sums[SCALES - 1][m] = simd.mul_add_f32x8(high, x, sums[SCALES - 1][m]);
            }
        }
        for (sums, scale) in sums.iter().zip(&self.scales[group]) {
            let scale = simd.splat_f32x8(*scale);
            for m in 0..M {
                acc[m] = simd.mul_add_f32x8(sums[m], scale, acc[m]);
            }
        }
        acc
    }
}

/// The low four bits of eight bytes, and the high four.
#[inline(always)]
fn integers(simd: V3, bytes: &[u8]) -> (f32x8, f32x8) {
    let mut sixteen = [0u8; 16];
    sixteen[..8].copy_from_slice(bytes);
    let bytes: u8x16 = cast(sixteen);
    let wide: u32x8 = simd.convert_u8x16_to_u32x8(bytes);
    let low = simd.and_u32x8(wide, simd.splat_u32x8(15));
    let high = simd.shr_const_u32x8::<4>(wide);
    (simd.convert_i32x8_to_f32x8(cast(low)), simd.convert_i32x8_to_f32x8(cast(high)))
}

#[inline(always)]
fn dot(simd: V3, a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_end), (b, b_end)) = (V3::as_simd_f32s(a), V3::as_simd_f32s(b));
    let mut sum = simd.splat_f32x8(0.0);
    for (a, b) in a.iter().zip(b) {
        sum = simd.mul_add_f32x8(*a, *b, sum);
    }
    simd.reduce_sum_f32s(sum) + a_end.iter().zip(b_end).map(|(a, b)| a * b).sum::<f32>()
}
