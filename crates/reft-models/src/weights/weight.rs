use tch::{Kind, Tensor};

use crate::weights::quick_products::{by_kernels, through_f32};
use crate::{ModelDescription, ModelTensor, Quantised, TensorRole};

/// A weight of a model: a tensor, or a frozen quantised matrix that is expanded on use.
#[derive(Debug)]
pub enum Weight {
    /// The tensor itself.
    Dense(Tensor),
    /// Blocks of small integers.
    Quantised(Quantised),
}

impl Weight {
    /// The tensor itself, which shares its storage, or the expanded blocks: `[out, in]`.
    pub fn dense(&self) -> Tensor {
        match self {
            Self::Dense(tensor) => tensor.shallow_clone(),
            Self::Quantised(blocks) => blocks.expanded(),
        }
    }

    /// The tensor `[out, in]`, if it is one.
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

    /// Whether it requires a gradient.
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

/// Storage of a frozen model's matrices on the device: as tensors, or in blocks of small integers that are expanded on use.
///
/// Norms and biases are always tensors, and so is a matrix whose rows are not a whole number of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightStorage {
    /// Tensors of the kind used for computing.
    #[default]
    Dense,
    /// As in the file: the blocks Q8_0, Q5_0, Q5_1, Q4_0, Q4_1, Q4_K and Q6_K of a GGUF file stay packed, anything else becomes tensors.
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

impl WeightStorage {
    /// Bytes of a tensor of a model; `kind` is the kind of dense tensors. [`Self::AsStored`] assumes the smallest of the file's block types.
    pub fn bytes_of(self, tensor: &ModelTensor, kind: Kind) -> f64 {
        let is_of_tokens = matches!(tensor.role, TensorRole::Embeddings | TensorRole::Head);
        let bits = match (self, &tensor.shape[..]) {
            (Self::Dense, _) => None,
            _ if tensor.role == TensorRole::Vector => None,
            (Self::Int4, [_, columns]) if columns % 32 == 0 && !is_of_tokens => Some(4.5),
            (Self::AsStored, [_, columns]) if columns % 32 == 0 => Some(4.5),
            (_, [_, columns]) if columns % 32 == 0 => Some(8.5),
            _ => None,
        };
        let bits = bits.unwrap_or(8.0 * kind.elt_size_in_bytes() as f64);
        bits * tensor.numel() as f64 / 8.0
    }

    /// [`Self::bytes_of`] of the weights of each stage of a model's forward.
    pub fn bytes_of_stages(self, model: &ModelDescription, kind: Kind) -> Vec<u64> {
        let mut bytes = vec![0.0; model.num_hidden_layers + 1];
        model.tensors.iter().for_each(|own| bytes[own.stage] += self.bytes_of(own, kind));
        bytes.into_iter().map(|bytes| bytes as u64).collect()
    }
}

/// `y = W x + b`, on row vectors: `[.., in]` to `[.., out]`.
#[derive(Debug)]
pub struct Linear {
    /// `W` `[out, in]`.
    pub weight: Weight,
    /// `b` `[out]`.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// Applies the projection, from `[.., in]` to `[.., out]`. A quantised weight is expanded, and kept expanded until the backward under autograd. On a CPU, without autograd,
    /// kernels read its blocks.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let bias = self.bias.as_ref();
        let quick =
            by_kernels(x, &self.weight, bias).or_else(|| through_f32(x, &self.weight, bias));
        quick.unwrap_or_else(|| x.linear(&self.weight.dense(), bias))
    }
}
