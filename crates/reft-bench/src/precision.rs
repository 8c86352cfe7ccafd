use tch::Kind;

/// Kind of the frozen model's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the range of f32.
    Bf16,
    /// 16 bits, trained with a loss scale.
    F16,
}

reft_core::names!(Precision, "kind", reft_models::Error, {
    F32 => "f32", Bf16 => "bf16", F16 => "f16",
});

impl Precision {
    /// The same kind as tch's type.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }
}
