use tch::Tensor;

use crate::weights::quantised::Quantised;

/// A weight of a model: a tensor, or a frozen matrix that is kept small and expanded when it is computed with.
#[derive(Debug)]
pub enum Weight {
    /// The tensor itself.
    Dense(Tensor),
    /// Blocks of small integers.
    Quantised(Quantised),
}

impl Weight {
    /// The tensor itself, which shares its storage, or what the blocks are expanded to.
    pub fn dense(&self) -> Tensor {
        match self {
            Self::Dense(tensor) => tensor.shallow_clone(),
            Self::Quantised(blocks) => blocks.expanded(),
        }
    }

    /// The tensor, if it is one.
    pub fn tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Dense(tensor) => Some(tensor),
            Self::Quantised(_) => None,
        }
    }

    /// Rows `[.., columns]` of a matrix, for indices `[..]`. Differentiable in a tensor.
    pub fn rows_at(&self, indices: &Tensor) -> Tensor {
        match self {
            Self::Dense(tensor) => Tensor::embedding(tensor, indices, -1, false, false),
            Self::Quantised(blocks) => blocks.rows_at(indices),
        }
    }

    /// Its shape.
    pub fn size(&self) -> Vec<i64> {
        match self {
            Self::Dense(tensor) => tensor.size(),
            Self::Quantised(blocks) => blocks.size(),
        }
    }

    /// Number of its entries.
    pub fn numel(&self) -> usize {
        self.size().iter().product::<i64>() as usize
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => tensor.numel() * tensor.kind().elt_size_in_bytes(),
            Self::Quantised(blocks) => blocks.bytes(),
        }
    }

    /// Whether a gradient of it is wanted.
    pub fn requires_grad(&self) -> bool {
        self.tensor().is_some_and(Tensor::requires_grad)
    }

    /// Another handle on the same numbers.
    pub fn shallow_clone(&self) -> Self {
        match self {
            Self::Dense(tensor) => Self::Dense(tensor.shallow_clone()),
            Self::Quantised(blocks) => Self::Quantised(blocks.shallow_clone()),
        }
    }
}
