/// How the matrices of a frozen model are held on the device: as tensors, or in blocks of small integers that are expanded when they are
/// computed with.
///
/// Norms and biases are tensors always, and so is a matrix whose rows are no whole number of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightStorage {
    /// Tensors of the kind that is computed with.
    #[default]
    Dense,
    /// As the file holds them: the blocks Q8_0, Q4_0, Q4_1, Q4_K and Q6_K of a GGUF file stay packed, anything else becomes tensors.
    AsStored,
    /// Blocks of 32 eight-bit integers, 8.5 bits a number (GGUF's Q8_0), made when weights are read.
    Int8,
    /// Blocks of 32 four-bit integers, 4.5 bits a number (GGUF's Q4_0), made when weights are read; embeddings and head in eight bits.
    Int4,
}

reft_core::names!(WeightStorage, "way to hold weights", crate::Error, {
    Dense => "dense",
    AsStored => "as-stored",
    Int8 => "int8",
    Int4 => "int4",
});
