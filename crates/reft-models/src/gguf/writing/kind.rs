use candle_core::quantized::GgmlDType;

use crate::Error;

/// The kind of the matrices in a written GGUF file; vectors are f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufKind {
    /// 32 bits.
    F32,
    /// 16 bits with the range of f32.
    Bf16,
    /// 16 bits.
    F16,
    /// Blocks of 32 integers of 8 bits with a factor each; f16 for a matrix whose rows are not a whole number of blocks.
    Q8,
}

reft_core::names!(GgufKind, "kind", Error, {
    F32 => "f32", Bf16 => "bf16", F16 => "f16", Q8 => "q8_0",
});

impl GgufKind {
    /// The type of a tensor of this shape.
    pub(crate) fn of_tensor(self, shape: &[i64]) -> GgmlDType {
        let own = match self {
            Self::F32 => GgmlDType::F32,
            Self::Bf16 => GgmlDType::BF16,
            Self::F16 => GgmlDType::F16,
            Self::Q8 => GgmlDType::Q8_0,
        };
        match shape {
            [_, columns] if columns % own.block_size() as i64 == 0 => own,
            [_, _] => GgmlDType::F16,
            _ => GgmlDType::F32,
        }
    }

    /// Its number in `general.file_type`.
    pub(crate) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8 => 7,
            Self::Bf16 => 32,
        }
    }
}
