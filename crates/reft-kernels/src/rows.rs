use pulp::bytemuck::cast_slice;

/// A matrix `[rows, columns]` in memory, row after row. Blocks are those of GGUF, with each part in its own array; scales and offsets are f16 bits.
#[derive(Debug, Clone, Copy)]
pub enum Rows<'a> {
    /// Numbers in f32.
    F32(&'a [f32]),
    /// The bits of numbers in bf16.
    Bf16(&'a [u16]),
    /// The bits of numbers in f16.
    F16(&'a [u16]),
    /// 32 numbers `d·q`.
    Q8_0 {
        /// `d` of each block.
        scales: &'a [u16],
        /// `q`, −128 to 127.
        quants: &'a [i8],
    },
    /// 32 numbers `d·q + m`, with `q` in four bits each: the low four bits of a block's 16 bytes, then the high four.
    Nibbles {
        /// `d` of each block.
        scales: &'a [u16],
        /// `m` of each block.
        offsets: Offsets<'a>,
        /// The fifth bits of `q`, from the lowest bit of the first byte on, 4 bytes for each block.
        fifth_bits: Option<&'a [u8]>,
        /// The lower four bits of `q`.
        quants: &'a [u8],
    },
    /// 8 times 32 numbers `d·s·q − e·m`.
    Q4K {
        /// `d` of each block.
        scales: &'a [u16],
        /// `e` of each block.
        offsets: &'a [u16],
        /// `s`, 8 for each block.
        inner_scales: &'a [u8],
        /// `m`, 8 for each block.
        inner_offsets: &'a [u8],
        /// `q` in four bits each: the low four bits of each 32 bytes, then the high four.
        quants: &'a [u8],
    },
    /// 16 times 16 numbers `d·s·q`.
    Q6K {
        /// `d` of each block.
        scales: &'a [u16],
        /// `s`, 16 for each block.
        inner_scales: &'a [i8],
        /// `q`, −32 to 31.
        quants: &'a [i8],
    },
}

/// The zero point of a block of [`Rows::Nibbles`].
#[derive(Debug, Clone, Copy)]
pub enum Offsets<'a> {
    /// `m = −z·d`: `q` counts from `z`.
    Zero(u8),
    /// `m` of each block.
    Each(&'a [u16]),
}

pub(crate) const BLOCK: usize = 32;
pub(crate) const SUPER_BLOCK: usize = 256;

/// Buffers for the expanded numbers, scales and offsets of rows.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) numbers: Vec<f32>,
    pub(crate) scales: Vec<f32>,
    pub(crate) offsets: Vec<f32>,
    /// Integers of eight bits, four in each.
    #[cfg(target_arch = "x86_64")]
    pub(crate) integers: Vec<i32>,
}

impl<'a> Rows<'a> {
    /// Numbers per block; 1 for kinds without blocks.
    pub fn block(&self) -> usize {
        match self {
            Self::F32(_) | Self::Bf16(_) | Self::F16(_) => 1,
            Self::Q8_0 { .. } | Self::Nibbles { .. } => BLOCK,
            Self::Q4K { .. } | Self::Q6K { .. } => SUPER_BLOCK,
        }
    }

    /// Whether its integers have four bits.
    #[cfg(any(test, target_arch = "x86_64"))]
    pub(crate) fn has_four_bits(&self) -> bool {
        matches!(self, Self::Q4K { .. } | Self::Nibbles { fifth_bits: None, .. })
    }

    /// Whether every part holds `rows · columns` numbers in whole blocks.
    pub(crate) fn holds(&self, rows: usize, columns: usize) -> bool {
        let n = rows * columns;
        let blocks = n / self.block();
        columns.is_multiple_of(self.block())
            && match self {
                Self::F32(numbers) => numbers.len() == n,
                Self::Bf16(bits) | Self::F16(bits) => bits.len() == n,
                Self::Q8_0 { scales, quants } => scales.len() == blocks && quants.len() == n,
                Self::Nibbles { scales, offsets, fifth_bits, quants } => {
                    scales.len() == blocks
                        && quants.len() == n / 2
                        && fifth_bits.is_none_or(|bits| bits.len() == 4 * blocks)
                        && match offsets {
                            Offsets::Zero(_) => true,
                            Offsets::Each(offsets) => offsets.len() == blocks,
                        }
                }
                Self::Q4K { scales, offsets, inner_scales, inner_offsets, quants } => {
                    let inner = [inner_scales.len(), inner_offsets.len()];
                    scales.len() == blocks
                        && offsets.len() == blocks
                        && inner == [8 * blocks; 2]
                        && quants.len() == n / 2
                }
                Self::Q6K { scales, inner_scales, quants } => {
                    scales.len() == blocks && inner_scales.len() == 16 * blocks && quants.len() == n
                }
            }
    }

    /// The bytes of the largest part (the numbers, or their integers), and the number of bytes per row.
    pub(crate) fn memory(&self, columns: usize) -> (&'a [u8], usize) {
        match self {
            Self::F32(numbers) => (cast_slice(numbers), 4 * columns),
            Self::Bf16(bits) | Self::F16(bits) => (cast_slice(bits), 2 * columns),
            Self::Q8_0 { quants, .. } | Self::Q6K { quants, .. } => (cast_slice(quants), columns),
            Self::Nibbles { quants, .. } | Self::Q4K { quants, .. } => (quants, columns / 2),
        }
    }

    /// The `columns` numbers of row `row`, expanded into `scratch` unless they are stored as f32.
    #[inline(always)]
    pub(crate) fn row<'s>(
        &'s self,
        row: usize,
        columns: usize,
        scratch: &'s mut Scratch,
    ) -> &'s [f32] {
        let numbers = row * columns..(row + 1) * columns;
        if let Self::F32(all) = self {
            return &all[numbers];
        }
        let Scratch { numbers: out, scales: d, offsets: m, .. } = scratch;
        out.resize(columns, 0.0);
        let blocks = numbers.start / self.block()..numbers.end / self.block();
        let halves = numbers.start / 2..numbers.end / 2;
        let times = |range: &std::ops::Range<usize>, n: usize| n * range.start..n * range.end;
        match self {
            Self::F32(_) => {}
            Self::Bf16(all) => bf16_to(&all[numbers], out),
            Self::F16(all) => halves_to(&all[numbers], out),
            Self::Q8_0 { scales, quants } => {
                halves_into(&scales[blocks], d);
                integers_to(&quants[numbers], out);
                for (out, d) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(d) {
                    out.iter_mut().for_each(|out| *out *= *d);
                }
            }
            Self::Nibbles { scales, offsets, fifth_bits, quants } => {
                halves_into(&scales[blocks.clone()], d);
                let zero = match offsets {
                    Offsets::Zero(zero) => {
                        m.clear();
                        m.resize(d.len(), 0.0);
                        f32::from(*zero)
                    }
                    Offsets::Each(offsets) => {
                        halves_into(&offsets[blocks.clone()], m);
                        0.0
                    }
                };
                let q = quants[halves].as_chunks::<16>().0;
                let outs = out.as_chunks_mut::<BLOCK>().0;
                let scaled = d.iter().zip(m.iter());
                let fifth = fifth_bits.map(|bits| bits[times(&blocks, 4)].as_chunks::<4>().0);
                for (i, ((out, q), (d, m))) in outs.iter_mut().zip(q).zip(scaled).enumerate() {
                    let fifth = fifth.map_or(0, |bits| u32::from_le_bytes(bits[i]));
                    let (low, high) = out.split_at_mut(16);
                    for (j, q) in q.iter().enumerate() {
                        let bit = |at: usize| ((fifth >> at) & 1) as u8 * 16;
                        low[j] = (f32::from((q & 15) + bit(j)) - zero) * *d + *m;
                        high[j] = (f32::from((q >> 4) + bit(j + 16)) - zero) * *d + *m;
                    }
                }
            }
            Self::Q4K { scales, offsets, inner_scales, inner_offsets, quants } => {
                halves_into(&scales[blocks.clone()], d);
                halves_into(&offsets[blocks.clone()], m);
                let s = inner_scales[times(&blocks, 8)].as_chunks::<2>().0;
                let e = inner_offsets[times(&blocks, 8)].as_chunks::<2>().0;
                let q = quants[halves].as_chunks::<32>().0;
                let outs = out.as_chunks_mut::<64>().0;
                for (i, ((out, q), (s, e))) in
                    outs.iter_mut().zip(q).zip(s.iter().zip(e)).enumerate()
                {
                    let (d, m) = (d[i / 4], m[i / 4]);
                    let [s, other_s] = s.map(|s| f32::from(s) * d);
                    let [e, other_e] = e.map(|e| f32::from(e) * m);
                    let (low, high) = out.split_at_mut(32);
                    for ((low, high), q) in low.iter_mut().zip(high).zip(q) {
                        *low = f32::from(q & 15) * s - e;
                        *high = f32::from(q >> 4) * other_s - other_e;
                    }
                }
            }
            Self::Q6K { scales, inner_scales, quants } => {
                halves_into(&scales[blocks.clone()], d);
                let s = &inner_scales[times(&blocks, 16)];
                integers_to(&quants[numbers], out);
                for (i, (out, s)) in out.as_chunks_mut::<16>().0.iter_mut().zip(s).enumerate() {
                    let scale = f32::from(*s) * d[i / 16];
                    out.iter_mut().for_each(|out| *out *= scale);
                }
            }
        }
        out
    }
}

/// Converts eight-bit integers in one long loop, which the compiler vectorises.
#[inline(always)]
fn integers_to(quants: &[i8], out: &mut [f32]) {
    for (out, q) in out.iter_mut().zip(quants) {
        *out = f32::from(*q);
    }
}

/// Converts bf16, given as bits.
#[inline(always)]
pub(crate) fn bf16_to(bits: &[u16], out: &mut [f32]) {
    for (out, bits) in out.iter_mut().zip(bits) {
        *out = f32::from_bits(u32::from(*bits) << 16);
    }
}

/// Converts f16, given as bits. It is inlined, and so compiled for the CPU's instructions; a call for each eight numbers would not be.
#[inline(always)]
pub(crate) fn halves_to(bits: &[u16], out: &mut [f32]) {
    const EXPONENTS: u32 = 0x7c00;
    // the stored exponent of f16 is 15 larger than the number's exponent, and the stored exponent of f32 is 127 larger
    let shift = f32::from_bits((127 + 127 - 15) << 23);
    for (out, bits) in out.iter_mut().zip(bits) {
        let bits = u32::from(*bits);
        let size = f32::from_bits((bits & 0x7fff) << 13) * shift;
        let is_finite = bits & EXPONENTS != EXPONENTS;
        let exponent = if is_finite { 0 } else { f32::INFINITY.to_bits() };
        *out = f32::from_bits(size.to_bits() | exponent | (bits & 0x8000) << 16);
    }
}

#[inline(always)]
pub(crate) fn halves_into(bits: &[u16], out: &mut Vec<f32>) {
    out.resize(bits.len(), 0.0);
    halves_to(bits, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_has_its_number() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let mut found = vec![f32::NAN; bits.len()];
        halves_to(&bits, &mut found);
        for (bits, found) in bits.into_iter().zip(found) {
            let expected = half::f16::from_bits(bits).to_f32();
            let is_equal = found.to_bits() == expected.to_bits();
            assert!(is_equal || (found.is_nan() && expected.is_nan()), "{bits:x}: {found}");
        }
    }
}
