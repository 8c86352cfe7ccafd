//! Matrices held as blocks of small integers with a scale each.

use candle_core::quantized::GgmlDType;
use reft_kernels::{Offsets, Rows};
use tch::{Device, Kind, TchError, Tensor};

use crate::weights::quick_products::{expanded, memory};

/// How the numbers of a row are packed. All of these are GGUF's; weights packed at load have the same layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockFormat {
    /// 32 numbers `d·q`, `q` in −128..=127: 8.5 bits each.
    Q8_0,
    /// 32 numbers `d·(q − 8)`, `q` in 0..=15: 4.5 bits each.
    Q4_0,
    /// 32 numbers `d·q + m`, `q` in 0..=15: 5 bits each.
    Q4_1,
    /// 32 numbers `d·(q − 16)`, `q` in 0..=31, the fifth bits apart: 5.5 bits each.
    Q5_0,
    /// 32 numbers `d·q + m`, `q` in 0..=31, the fifth bits apart: 6 bits each.
    Q5_1,
    /// 8 times 32 numbers `d·s·q − e·m`, 6-bit `s` and `m`, `q` in 0..=15: 4.5 bits each in the file, 4.625 here (`s` and `m` take a byte each).
    Q4K,
    /// 16 times 16 numbers `d·s·q` with an 8-bit `s`, `q` in −32..=31: 6.56 bits each in the file, 8.56 here (`q` takes a byte).
    Q6K,
}

impl BlockFormat {
    /// The format of a GGUF type; `None` if it is not kept packed.
    pub(crate) fn of(dtype: GgmlDType) -> Option<Self> {
        match dtype {
            GgmlDType::Q8_0 => Some(Self::Q8_0),
            GgmlDType::Q4_0 => Some(Self::Q4_0),
            GgmlDType::Q4_1 => Some(Self::Q4_1),
            GgmlDType::Q5_0 => Some(Self::Q5_0),
            GgmlDType::Q5_1 => Some(Self::Q5_1),
            GgmlDType::Q4K => Some(Self::Q4K),
            GgmlDType::Q6K => Some(Self::Q6K),
            _ => None,
        }
    }

    /// Numbers per block.
    pub(crate) fn block(self) -> i64 {
        match self {
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// The parts of blocks from the bytes of a GGUF file, `[n, blocks, bytes]`, for `n` rows.
    pub(crate) fn unpack(self, bytes: &Tensor) -> Vec<Tensor> {
        let part = |start: i64, len: i64| bytes.narrow(2, start, len).contiguous();
        let half = |start: i64| part(start, 2).view_dtype(Kind::Half).squeeze_dim(2);
        let signed = |start: i64, len: i64| part(start, len).view_dtype(Kind::Int8);
        match self {
            Self::Q8_0 => vec![half(0), signed(2, 32)],
            Self::Q4_0 => vec![half(0), part(2, 16)],
            Self::Q4_1 => vec![half(0), half(2), part(4, 16)],
            Self::Q5_0 => vec![half(0), part(2, 4), part(6, 16)],
            Self::Q5_1 => vec![half(0), half(2), part(4, 4), part(8, 16)],
            Self::Q4K => {
                let (low, middle, high) = (part(4, 4), part(8, 4), part(12, 4));
                let top = |x: &Tensor| shifted_right(x, 6) * 16;
                let scales = [low.bitwise_and(63), high.bitwise_and(15) + top(&low)];
                let minima = [middle.bitwise_and(63), shifted_right(&high, 4) + top(&middle)];
                let (scales, minima) = (Tensor::cat(&scales, 2), Tensor::cat(&minima, 2));
                vec![half(0), half(2), scales, minima, part(16, 128)]
            }
            Self::Q6K => {
                let low = part(0, 128).unflatten(2, [2, 2, 32]); // halves of a block, columns of 32 bytes
                let low = nibbles(&low, 3); // [.., 2, 4, 32]
                let high = part(128, 64).unflatten(2, [2, 1, 32]);
                let high = [0, 2, 4, 6].map(|bits| shifted_right(&high, bits).bitwise_and(3));
                let high = Tensor::cat(&high, 3) * 16; // [.., 2, 4, 32]
                let quants = (low + high).to_kind(Kind::Int8) - 32;
                vec![half(208), signed(192, 16), quants.flatten(2, -1)]
            }
        }
    }

    /// The numbers `[n, columns]` of `n` rows, in f32.
    pub(crate) fn expand(self, parts: &[Tensor]) -> Tensor {
        let float = |i: usize| parts[i].to_kind(Kind::Float);
        let each = |i: usize| float(i).unsqueeze(-1);
        let values = match self {
            Self::Q8_0 => float(1) * each(0),
            Self::Q4_0 => (nibbles(&parts[1], -1).to_kind(Kind::Float) - 8.0) * each(0),
            Self::Q4_1 => nibbles(&parts[2], -1).to_kind(Kind::Float) * each(0) + each(1),
            Self::Q5_0 => (five_bits(&parts[1], &parts[2]) - 16.0) * each(0),
            Self::Q5_1 => five_bits(&parts[2], &parts[3]) * each(0) + each(1),
            Self::Q4K => {
                let (scale, minimum) = (float(2) * each(0), float(3) * each(1)); // [n, blocks, 8]
                let quants = nibbles(&parts[4].unflatten(2, [4, 32]), -1); // [n, blocks, 4, 64]
                let quants = quants.unflatten(3, [2, 32]).flatten(2, 3).to_kind(Kind::Float);
                quants * scale.unsqueeze(-1) - minimum.unsqueeze(-1)
            }
            Self::Q6K => {
                let scale = float(1) * each(0); // [n, blocks, 16]
                float(2).unflatten(2, [16, 16]) * scale.unsqueeze(-1)
            }
        };
        values.flatten(1, -1)
    }

    /// Parts of blocks for the numbers `[n, columns]`, in f32.
    pub(crate) fn quantise(self, values: &Tensor) -> Vec<Tensor> {
        let blocks = values.unflatten(1, [-1, self.block()]); // [n, blocks, 32]
        let quotients = |scale: &Tensor| {
            let scale = scale.to_kind(Kind::Float).unsqueeze(-1); // the rounded scale, so that the quotients compensate its rounding
            (&blocks / &scale).nan_to_num(0.0, 0.0, 0.0) // a block of zeros has scale 0
        };
        match self {
            Self::Q8_0 => {
                let scale = (blocks.abs().amax(-1, false) / 127.0).to_kind(Kind::Half);
                let quants = quotients(&scale).round().clamp(-127.0, 127.0).to_kind(Kind::Int8);
                vec![scale, quants]
            }
            Self::Q4_0 => {
                let largest =
                    blocks.gather(-1, &blocks.abs().argmax(-1, true), false).squeeze_dim(-1);
                let scale = (largest / -8.0).to_kind(Kind::Half); // the largest number becomes −8 exactly
                let quants =
                    (quotients(&scale) + 8.5).floor().clamp(0.0, 15.0).to_kind(Kind::Uint8);
                let (low, high) = (quants.narrow(2, 0, 16), quants.narrow(2, 16, 16));
                vec![scale, low + high * 16]
            }
            Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q4K | Self::Q6K => {
                unreachable!("invariant: only Q8_0 and Q4_0 are made at load")
            }
        }
    }
}

/// The low four bits of bytes, then the high four bits, along a dimension.
fn nibbles(bytes: &Tensor, dim: i64) -> Tensor {
    Tensor::cat(&[bytes.bitwise_and(15), shifted_right(bytes, 4)], dim)
}

/// Numbers from 0 to 31. Their fifth bits are the bits of the bytes `high` `[.., 4]`, from the lowest bit of the first byte on; their lower
/// four bits are the halves of the bytes `low` `[.., 16]`.
fn five_bits(high: &Tensor, low: &Tensor) -> Tensor {
    let each: Vec<Tensor> = (0..8).map(|bit| shifted_right(high, bit)).collect();
    let fifth = Tensor::stack(&each, -1).flatten(-2, -1).bitwise_and(1) * 16; // [.., 32]
    (nibbles(low, -1) + fifth).to_kind(Kind::Float)
}

fn shifted_right(bytes: &Tensor, bits: i64) -> Tensor {
    bytes.bitwise_right_shift_tensor_scalar(bits)
}

/// A matrix `[rows, columns]` in blocks along its rows, on the device that computes with it.
///
/// It is expanded on use, by kernels on a CPU and by tensor operations, a few rows at a time, on a GPU. It has no gradient.
#[derive(Debug)]
pub struct Quantised {
    format: BlockFormat,
    columns: i64,
    /// The kind of the expanded matrix.
    kind: Kind,
    /// The parts of its blocks; the first dimension of each is the matrix's rows.
    parts: Vec<Tensor>,
    /// Whether the kernels round the vectors that they multiply with it.
    int8_products: bool,
}

impl Quantised {
    /// Assembles a matrix from chunks of its rows: `parts_of` gives the parts of the rows `first..first + n`, from
    /// [`BlockFormat::unpack`] or [`BlockFormat::quantise`].
    pub(crate) fn gather(
        format: BlockFormat,
        (rows, columns): (i64, i64),
        (kind, device): (Kind, Device),
        mut parts_of: impl FnMut(i64, i64) -> crate::Result<Vec<Tensor>>,
    ) -> crate::Result<Self> {
        let mut parts: Vec<Tensor> = Vec::new();
        for (first, n) in row_chunks(rows, columns, device) {
            let chunk = parts_of(first, n)?;
            if parts.is_empty() {
                for part in &chunk {
                    let mut shape = part.size();
                    shape[0] = rows;
                    parts.push(Tensor::f_empty(&shape, (part.kind(), device))?);
                }
            }
            for (part, chunk) in parts.iter().zip(&chunk) {
                part.f_narrow(0, first, n)?.f_copy_(chunk)?;
            }
        }
        Ok(Self { format, columns, kind, parts, int8_products: false })
    }

    /// Sets whether the kernels round the vectors that they multiply with it.
    pub(crate) fn with_int8_products(self, int8_products: bool) -> Self {
        Self { int8_products, ..self }
    }

    /// Whether the kernels round the vectors that they multiply with it.
    pub(crate) fn int8_products(&self) -> bool {
        self.int8_products
    }

    /// `[rows, columns]`.
    pub fn size(&self) -> Vec<i64> {
        vec![self.rows(), self.columns]
    }

    /// The expanded matrix `[out, in]`.
    pub fn expanded(&self) -> Tensor {
        if let Some(matrix) = self.as_rows() {
            return expanded(matrix, &self.size(), self.kind);
        }
        let rows = self.rows();
        let device = self.parts[0].device();
        let _guard = tch::no_grad_guard();
        let whole = Tensor::empty([rows, self.columns], (self.kind, device));
        for (first, n) in row_chunks(rows, self.columns, device) {
            let parts: Vec<Tensor> =
                self.parts.iter().map(|part| part.narrow(0, first, n)).collect();
            whole.narrow(0, first, n).copy_(&self.format.expand(&parts));
        }
        whole
    }

    /// Some rows, `[.., columns]` for indices `[..]`, expanded.
    pub fn rows_at(&self, indices: &Tensor) -> Tensor {
        let flat = indices.flatten(0, -1);
        let parts: Vec<Tensor> =
            self.parts.iter().map(|part| part.index_select(0, &flat)).collect();
        let mut shape = indices.size();
        shape.push(self.columns);
        self.format.expand(&parts).to_kind(self.kind).view(shape.as_slice())
    }

    /// The same matrix with its rows in another order.
    pub(crate) fn permuted(&self, order: &Tensor) -> Result<Self, TchError> {
        let order = order.f_to_device(self.parts[0].device())?;
        let parts = self.parts.iter().map(|part| part.f_index_select(0, &order));
        Ok(Self { parts: parts.collect::<Result<_, _>>()?, ..*self })
    }

    /// The blocks for the kernels; `None` on a GPU.
    pub(crate) fn as_rows<'a>(&'a self) -> Option<Rows<'a>> {
        let parts = &self.parts;
        let scales = memory(&parts[0])?;
        let nibbles = |offsets: Offsets<'a>, fifth_bits: Option<&'a [u8]>, quants: &'a Tensor| {
            Some(Rows::Nibbles { scales, offsets, fifth_bits, quants: memory(quants)? })
        };
        match self.format {
            BlockFormat::Q8_0 => Some(Rows::Q8_0 { scales, quants: memory(&parts[1])? }),
            BlockFormat::Q4_0 => nibbles(Offsets::Zero(8), None, &parts[1]),
            BlockFormat::Q4_1 => nibbles(Offsets::Each(memory(&parts[1])?), None, &parts[2]),
            BlockFormat::Q5_0 => nibbles(Offsets::Zero(16), Some(memory(&parts[1])?), &parts[2]),
            BlockFormat::Q5_1 => {
                nibbles(Offsets::Each(memory(&parts[1])?), Some(memory(&parts[2])?), &parts[3])
            }
            BlockFormat::Q4K => Some(Rows::Q4K {
                scales,
                offsets: memory(&parts[1])?,
                inner_scales: memory(&parts[2])?,
                inner_offsets: memory(&parts[3])?,
                quants: memory(&parts[4])?,
            }),
            BlockFormat::Q6K => Some(Rows::Q6K {
                scales,
                inner_scales: memory(&parts[1])?,
                quants: memory(&parts[2])?,
            }),
        }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.numel() * part.kind().elt_size_in_bytes()).sum()
    }

    /// Another handle on the same blocks.
    pub(crate) fn shallow_clone(&self) -> Self {
        Self { parts: self.parts.iter().map(Tensor::shallow_clone).collect(), ..*self }
    }

    fn rows(&self) -> i64 {
        self.parts[0].size()[0]
    }
}

/// Numbers that are expanded, read or quantised at once: enough to keep a GPU busy, few enough to stay in a CPU's cache.
const NUMBERS_AT_ONCE: [i64; 2] = [1 << 20, 1 << 25];

/// `rows` in chunks: the first row and the number of rows of each.
pub(crate) fn row_chunks(
    rows: i64,
    columns: i64,
    device: Device,
) -> impl Iterator<Item = (i64, i64)> {
    let at_once = (NUMBERS_AT_ONCE[usize::from(device.is_cuda())] / columns.max(1)).max(1);
    (0..rows).step_by(at_once as usize).map(move |first| (first, at_once.min(rows - first)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Weight;
    use crate::weights::quick_products::by_kernels;

    fn matrix(rows: i64, columns: i64) -> Tensor {
        let x = Tensor::arange(rows * columns, (Kind::Float, Device::Cpu));
        ((&x * 0.7).sin() * (&x * 0.013).cos() * 3.0).view([rows, columns])
    }

    impl Quantised {
        /// A matrix in Q8_0.
        pub(crate) fn packed_for_tests(values: &Tensor) -> Self {
            quantised(BlockFormat::Q8_0, values)
        }
    }

    fn quantised(format: BlockFormat, values: &Tensor) -> Quantised {
        let (rows, columns) = values.size2().expect("invariant: a matrix");
        let options = (Kind::Float, Device::Cpu);
        Quantised::gather(format, (rows, columns), options, |first, n| {
            Ok(format.quantise(&values.narrow(0, first, n)))
        })
        .expect("invariant: a CPU matrix can be quantised")
    }

    /// Rounding to the nearest of evenly spaced values is off by at most half their distance. In both formats the values (255, or 16) span twice
    /// the largest number of a block.
    #[test]
    fn making_blocks_rounds_to_the_nearest_value() {
        let values = matrix(300, 4096); // more rows than one chunk
        let largest = values.unflatten(1, [-1, 32]).abs().amax(-1, true);
        for (format, share, bytes) in [
            (BlockFormat::Q8_0, 0.5 / 127.0, 34), // and the scale's own rounding to f16, 2^-11 of it
            (BlockFormat::Q4_0, 1.0 / 8.0, 18), // one side lacks the outermost value: a whole distance
        ] {
            let packed = quantised(format, &values);
            assert_eq!(packed.bytes(), 300 * 4096 / 32 * bytes);
            assert_eq!(packed.size(), [300, 4096]);
            let error = (packed.expanded() - &values).abs().unflatten(1, [-1, 32]);
            let worst = (error / &largest).max().double_value(&[]);
            assert!(worst < share * 1.01 + 5e-4, "{format:?}: {worst}");
            assert!(worst > share * 0.5, "{format:?} has no power: {worst}");
        }
    }

    #[test]
    fn zeros_stay_zeros_and_the_largest_number_of_a_block_keeps_its_sign() {
        let values = Tensor::zeros([2, 64], (Kind::Float, Device::Cpu));
        let _written = values.get(1).narrow(0, 40, 1).fill_(-2.0);
        for format in [BlockFormat::Q8_0, BlockFormat::Q4_0] {
            let error = (quantised(format, &values).expanded() - &values).abs().max();
            assert!(error.double_value(&[]) < 2e-3, "{format:?}"); // 2/127 in f16 times 127
        }
    }

    /// The kernels and the expanded matrix give equal products, except for the order of sums in f32.
    #[test]
    fn kernels_multiply_with_the_numbers_that_blocks_are_expanded_to() {
        let columns = 512i64;
        let byte = |n: i64, of: i64| {
            let x = Tensor::arange(n, (Kind::Int64, Device::Cpu));
            ((&x * &x * 37 + &x * 11 + of).remainder(251)).to_kind(Kind::Uint8)
        };
        for (format, bytes) in [
            (BlockFormat::Q8_0, 34),
            (BlockFormat::Q4_0, 18),
            (BlockFormat::Q4_1, 20),
            (BlockFormat::Q5_0, 22),
            (BlockFormat::Q5_1, 24),
            (BlockFormat::Q4K, 144),
            (BlockFormat::Q6K, 210),
        ] {
            let (rows, blocks) = (37, columns / format.block());
            let stored = byte(rows * blocks * bytes, bytes).view([rows, blocks, bytes]);
            // keep scales and offsets moderate: their high bytes are those of numbers around 1
            let at: &[i64] = match format {
                BlockFormat::Q8_0 | BlockFormat::Q4_0 | BlockFormat::Q5_0 => &[1],
                BlockFormat::Q6K => &[209],
                _ => &[1, 3],
            };
            for at in at {
                let _ = stored.select(2, *at).fill_(0x34);
            }
            let options = (Kind::Float, Device::Cpu);
            let packed = Quantised::gather(format, (rows, columns), options, |first, n| {
                Ok(format.unpack(&stored.narrow(0, first, n)))
            });
            let packed = packed.expect("invariant: a CPU matrix can be unpacked");
            for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
                let packed = Quantised { kind, ..packed.shallow_clone() };
                let expected = format.expand(&packed.parts).to_kind(kind);
                assert_eq!(packed.expanded(), expected, "{format:?} as {kind:?}");
            }
            for n in [1, 5, 16] {
                let x = matrix(n, columns);
                let expected = x.matmul(&packed.expanded().tr());
                let found = by_kernels(&x, &Weight::Quantised(packed.shallow_clone()), None);
                let found = found.expect("a CPU's matrix has a kernel");
                let error = (found - &expected).abs().max().double_value(&[]);
                let largest = expected.abs().max().double_value(&[]);
                assert!(
                    error <= 2e-6 * largest && largest > 1.0,
                    "{format:?}: {error} of {largest}"
                );
            }
        }
    }

    #[test]
    fn rows_and_the_whole_are_the_same_numbers() {
        let packed = quantised(BlockFormat::Q4_0, &matrix(50, 64));
        let indices = Tensor::from_slice(&[3i64, 49, 3, 0, 7, 11]).view([2, 3]);
        let rows = packed.rows_at(&indices);
        assert_eq!(rows.size(), [2, 3, 64]);
        let expected = packed.expanded().index_select(0, &indices.flatten(0, -1)).view([2, 3, 64]);
        assert_eq!(rows, expected);
    }
}
