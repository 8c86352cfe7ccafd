use std::fs;
use std::ops::Range;

use reft_models::{ModelDescription, ModelTensor, WeightStorage, io_error};
use serde::Serialize;

use crate::planner::step::Shape;
use crate::{Precision, Result, TimingCase};

/// Bytes that a training step holds at its peak, by their use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MemoryPlan {
    /// The program with libtorch before a model is loaded, and the work buffers of libtorch's matrix products.
    pub program: u64,
    /// The model's weights.
    pub weights: u64,
    /// Trained tensors (for the model's own weights only their f32 copies, if in half precision), their gradients, and AdamW's two moments.
    pub optimizer: u64,
    /// Activations of the forward that the backward needs.
    pub activations: u64,
    /// Tensors that exist for a moment at the peak: logits with their gradients, or the gradients inside one block.
    pub transient: u64,
    /// The batch's cached keys, values and hidden states.
    pub frozen_batch: u64,
}

impl MemoryPlan {
    /// The sum of all parts.
    pub fn total(&self) -> u64 {
        self.program
            + self.weights
            + self.optimizer
            + self.activations
            + self.transient
            + self.frozen_batch
    }
}

/// Numbers per token, or per key, that the backward of one frozen block keeps.
struct BlockNumbers {
    /// Bytes per token that runs through the first norm and the key projection.
    every: f64,
    /// Bytes per token whose output of the block is needed.
    wanted: f64,
    /// Bytes per key, in the batch's columns.
    key: f64,
}

impl BlockNumbers {
    fn of(model: &ModelDescription, shape: &Shape) -> Self {
        let kind = shape.kind_bytes;
        let (d, f) = (model.hidden_size as f64, model.intermediate_size as f64);
        let n_h = model.num_attention_heads as f64;
        let (q, kv) = (n_h * model.head_dim as f64, shape.kv);
        // a norm keeps its input in f32 for every kind of model
        let norm = 4.0 * d;
        let has = |norm: &str| model.tensors.iter().any(|tensor| tensor.name.ends_with(norm));
        let of_queries = if has("q_norm.weight") { 4.0 * q } else { 0.0 };
        let of_keys = if has("k_norm.weight") { 4.0 * kv } else { 0.0 };
        let first_norm = if has("input_layernorm.weight") { norm } else { 0.0 };
        let other_norms = model.norms_of_block() as f64 * norm - first_norm;
        // with a soft cap, 8 bytes per pair of query and key: tanh and softmax in f32 (in half precision a rounded softmax is kept too)
        let scores =
            if model.keeps_scores { 8.0 * n_h * (shape.kept_columns + shape.columns) } else { 0.0 };
        Self {
            every: first_norm + of_keys,
            // attention's query, output and log-sum; the other norms; the MLP's gate, its activation and up
            wanted: 2.0 * kind * q + 4.0 * n_h + other_norms + of_queries + scores + 3.0 * kind * f,
            key: 2.0 * kind * kv,
        }
    }
}

/// Most logits that the trainer holds at once, and the number of tensors of that size: logits, log-probabilities, and the gradient.
const LOGITS_AT_ONCE: f64 = (1 << 24) as f64;
const LOGIT_COPIES: f64 = 3.0;

/// Bytes of the buffers of libtorch's matrix products and autograd graph on a CPU.
pub(super) const WORKSPACE: u64 = 80_000_000;

/// Allocated memory of a step's tensors, as a multiple of their own bytes.
const ALLOCATED: f64 = 1.08;

/// Number of tensors of the MLP's inner size that are alive at once in the backward of a block.
const INNER_GRADIENTS: f64 = 3.0;

/// Number of tensors of the attention scores' size alive at once in a block's backward, for models whose soft cap needs explicit scores.
const SCORE_GRADIENTS: f64 = 4.0;

/// Bytes of the tensors of a step, block by block.
#[derive(Debug)]
pub(super) struct StepBytes {
    /// Activations of each block that live from its forward to its backward.
    kept: Vec<f64>,
    /// Activations of each block while it is recomputed for its backward.
    again: Vec<f64>,
    /// Temporary tensors of the backward of a block, and of the backward of the logits.
    in_block: f64,
    at_head: f64,
    /// The batch's kept hidden states, and its kept keys and values of each block.
    frozen_states: f64,
    frozen_block: f64,
    first_block: usize,
}

impl StepBytes {
    /// [`WORKSPACE`] and [`ALLOCATED`] are measured: with them the plan is within 7 % of `reft bench`'s peak for every method (docs/performance.md).
    pub(super) fn of(model: &ModelDescription, shape: &Shape, extra: &[f64]) -> Self {
        let numbers = BlockNumbers::of(model, shape);
        let layers = model.num_hidden_layers;
        let keys = shape.rows * (shape.kept_columns + shape.columns);
        let block = |layer: usize| {
            let tokens = shape.rows * shape.columns;
            let wanted =
                if layer + 1 == layers { shape.rows * shape.wanted_columns } else { tokens };
            tokens * numbers.every + wanted * (numbers.wanted + extra[layer]) + keys * numbers.key
        };
        let d = model.hidden_size as f64;
        let stream = shape.rows * shape.columns * shape.kind_bytes * d;
        let of_graph =
            |layer: usize| if layer < shape.first_graph_block { 0.0 } else { block(layer) };
        let (kept, again) = if shape.checkpoint_activations {
            let of_stream = |layer| if of_graph(layer) > 0.0 { stream } else { 0.0 };
            ((0..layers).map(of_stream).collect(), (0..layers).map(of_graph).collect())
        } else {
            ((0..layers).map(of_graph).collect(), vec![0.0; layers])
        };
        let logits = (shape.labels * model.vocab_size as f64).min(LOGITS_AT_ONCE);
        let inner = shape.rows * shape.columns * model.intermediate_size as f64 * shape.kind_bytes;
        let (expanded, head) = if shape.is_packed {
            let of_block = |tensor: &&ModelTensor| tensor.name.starts_with("model.layers.0.");
            let block: i64 = model.tensors.iter().filter(of_block).map(ModelTensor::numel).sum();
            (block as f64 * shape.kind_bytes, d * model.vocab_size as f64 * shape.kind_bytes)
        } else {
            (0.0, 0.0)
        };
        let scores = if model.keeps_scores {
            model.num_attention_heads as f64 * shape.columns * keys * shape.kind_bytes
        } else {
            0.0
        };
        let rows = if shape.keeps { shape.rows } else { 0.0 };
        Self {
            kept,
            again,
            in_block: (INNER_GRADIENTS * inner).max(SCORE_GRADIENTS * scores) + expanded,
            at_head: LOGIT_COPIES * 4.0 * logits + head,
            frozen_states: rows * shape.kept_states(model),
            frozen_block: rows * shape.kept_block(),
            first_block: shape.first_block,
        }
    }

    /// Activations that the backward needs of a device's blocks.
    pub(super) fn activations(&self, blocks: Range<usize>) -> u64 {
        let kept: f64 = self.kept[blocks.clone()].iter().sum();
        let again = self.again[blocks].iter().copied().fold(0.0, f64::max);
        (ALLOCATED * (kept + again)) as u64
    }

    /// Temporary tensors of a device, with the head or without.
    pub(super) fn transient(&self, has_head: bool) -> u64 {
        (ALLOCATED * if has_head { self.at_head.max(self.in_block) } else { self.in_block }) as u64
    }

    /// The batch's cached activations on the device that holds `blocks`.
    pub(super) fn frozen_batch(&self, blocks: Range<usize>) -> u64 {
        let own = blocks.start.max(self.first_block)..blocks.end;
        let is_last = blocks.end == self.kept.len();
        let has_states = own.contains(&self.first_block) || (is_last && own.is_empty());
        let states = if has_states { self.frozen_states } else { 0.0 };
        (states + own.len() as f64 * self.frozen_block) as u64
    }
}

/// Bytes per trained number: its gradient and both moments, and an f32 value: an adapter's own number, or the copy of a half-precision
/// number of the model. The model's own numbers count as weights.
pub(super) fn of_trained(kind: Precision, is_full: bool) -> u64 {
    const F32: u64 = 4;
    match (is_full, kind) {
        (false, _) => 4 * F32,
        (true, Precision::F32) => 3 * F32,
        (true, Precision::Bf16) => 2 + 3 * F32,
        // f16 gradients have an f32 copy too: divided by the loss scale they would underflow in f16
        (true, Precision::F16) => 2 + 4 * F32,
    }
}

/// Temporary bytes of AdamW's step, for the largest trained tensor: the buffer of its update, and an f32 gradient if the gradient is bf16.
pub(super) fn of_update(kind: Precision, is_full: bool, largest: usize) -> u64 {
    let copies = if is_full && kind == Precision::Bf16 { 2 } else { 1 };
    (4 * copies * largest) as u64
}

/// Bytes of the model's weights as they are held, stage by stage of the forward.
pub(super) fn of_weights(case: &TimingCase, model: &ModelDescription) -> Result<Vec<u64>> {
    let of_stages = |weights: WeightStorage| weights.bytes_of_stages(model, case.kind.kind());
    if case.weights != WeightStorage::AsStored {
        return Ok(of_stages(case.weights));
    }
    if !case.is_packed() {
        return Ok(of_stages(WeightStorage::Dense));
    }
    // the blocks of a GGUF file have several sizes: its bytes are divided in proportion to the dense sizes
    let file = fs::metadata(&case.model).map_err(io_error("read", &case.model))?.len();
    let dense = of_stages(WeightStorage::Dense);
    let all: u64 = dense.iter().sum();
    Ok(dense.iter().map(|own| (*own as f64 / all as f64 * file as f64) as u64).collect())
}
