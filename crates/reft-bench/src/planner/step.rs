use std::time::{Duration, Instant};

use reft_methods::numel;
use reft_models::{AdapterStack, Decoder, ModelDescription, Weights};
use reft_train::{Learner, NextToken};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::planner::memory::{self, MemoryPlan};
use crate::{Result, TimingCase};

/// What a step of training takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepPlan {
    /// Trained numbers.
    pub trainable_parameters: i64,
    /// At the peak of a step.
    pub memory: MemoryPlan,
    /// Bytes that are kept of one row for later epochs; 0: nothing can be kept, or is to be.
    pub kept_row: u64,
    /// What is computed.
    pub work: Work,
}

/// Floating-point operations of one step, in matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Work {
    /// On rows that were not seen before.
    pub first_epoch: f64,
    /// On rows whose frozen part is kept; the same if nothing is.
    pub later_epochs: f64,
}

/// The part of a step that is computed and differentiated.
#[derive(Debug)]
pub(super) struct Shape {
    /// Rows of the batch.
    pub(super) rows: f64,
    /// Columns that run through the blocks.
    pub(super) columns: f64,
    /// Columns whose keys and values are kept, before those.
    pub(super) kept_columns: f64,
    /// Columns that run through the whole of the last block.
    pub(super) wanted_columns: f64,
    /// Labelled tokens of the batch.
    pub(super) labels: f64,
    /// The first block that runs, and the first that is differentiated.
    pub(super) first_block: usize,
    pub(super) first_graph_block: usize,
    pub(super) keeps: bool,
    pub(super) checkpoint_activations: bool,
    /// Whether weights are packed, and a block's or the head's expanded while they are at work.
    pub(super) is_packed: bool,
    /// Bytes of a number of the model's kind.
    pub(super) kind_bytes: f64,
    /// Size of the keys of a token at a layer.
    pub(super) kv: f64,
}

impl Shape {
    fn new(case: &TimingCase, learner: &Learner) -> Self {
        let (model, (reach, keeps)) = (learner.model.description(), case.reach(learner));
        let (first_block, kept) = if keeps { (reach.stage, reach.token) } else { (0, 0) };
        let width = learner.stack.virtual_tokens() + case.prompt_length + case.response_length - 1;
        Self {
            rows: case.batch_size as f64,
            columns: (width - kept) as f64,
            kept_columns: kept as f64,
            wanted_columns: case.response_length as f64,
            labels: (case.batch_size * case.response_length) as f64,
            first_block,
            first_graph_block: reach.stage,
            keeps,
            // packed weights are expanded for one block at a time, which is differentiated by itself
            checkpoint_activations: case.checkpoint_activations || case.is_packed(),
            is_packed: case.is_packed(),
            kind_bytes: case.kind.kind().elt_size_in_bytes() as f64,
            kv: (model.num_key_value_heads * model.head_dim) as f64,
        }
    }

    /// Bytes that are kept of a row: hidden states of the columns that run, keys and values of those before them.
    pub(super) fn kept_row_bytes(&self, model: &ModelDescription) -> f64 {
        let blocks = (model.num_hidden_layers - self.first_block) as f64;
        let hidden_states = self.columns * model.hidden_size as f64;
        self.kind_bytes * (hidden_states + 2.0 * blocks * self.kv * self.kept_columns)
    }
}

/// Plans a step of a case that [`TimingCase::check`] accepts, from the model's shape alone: no weight is read or made.
///
/// `program` is what the process holds without a model ([`resident_memory`](reft_train::resident_memory)).
///
/// # Errors
/// What the method refuses.
pub fn plan_step(case: &TimingCase, program: u64) -> Result<StepPlan> {
    let config = case.model_config()?;
    let model = config.describe();
    case.check(&model)?;
    let weights = Weights::shapes_only(&model.tensors);
    let decoder = Decoder::from_weights(config, &weights, case.kind.kind(), Device::Cpu)?;
    let adapters = case.adapters(&decoder)?;
    let stack = AdapterStack::of_boxed(&adapters)?;
    let shape = Shape::new(case, &Learner::new(&decoder, &stack, &NextToken));
    let methods = case.methods(&model)?;
    let kept = methods.as_ref().map(|methods| methods.kept_per_token(&model, shape.kind_bytes));
    let kept = kept.transpose()?.unwrap_or_else(|| vec![0.0; model.num_hidden_layers]);
    let (activations, transient, frozen_batch) = memory::of_step(&model, &shape, &kept);
    let parameters = if methods.is_some() { stack.parameters() } else { Vec::new() };
    let trained = numel(&parameters);
    let largest = parameters.iter().map(|parameter| parameter.tensor.numel()).max().unwrap_or(0);
    let is_full = methods.is_some_and(|methods| methods.has("full"));
    let memory = MemoryPlan {
        program: program + memory::WORKSPACE,
        weights: memory::of_weights(case, &model)?,
        optimizer: trained as u64 * memory::of_trained(case.kind, is_full),
        activations: activations as u64,
        transient: (transient as u64).max(memory::of_update(case.kind, is_full, largest)),
        frozen_batch: frozen_batch as u64,
    };
    let kept_row = if shape.keeps { shape.kept_row_bytes(&model) as u64 } else { 0 };
    let work = work(&model, &shape, is_full);
    Ok(StepPlan { trainable_parameters: trained, memory, kept_row, work })
}

/// Products of the blocks' weights with tokens, of attention, and of the head.
fn work(model: &ModelDescription, shape: &Shape, is_full: bool) -> Work {
    let layers = model.num_hidden_layers;
    let (d, f) = (model.hidden_size as f64, model.intermediate_size as f64);
    let q = (model.num_attention_heads * model.head_dim) as f64;
    // operations of one block's forward on `tokens` that see `keys` each, `wanted` of them to the end
    let block = |tokens: f64, wanted: f64, keys: f64| {
        4.0 * tokens * d * shape.kv + wanted * (4.0 * d * q + 6.0 * d * f + 4.0 * keys * q)
    };
    let all = shape.columns + shape.kept_columns;
    let tokens = shape.rows * shape.columns;
    let forward = |layer: usize| {
        let wanted = if layer + 1 == layers { shape.rows * shape.wanted_columns } else { tokens };
        block(tokens, wanted, all)
    };
    let below: f64 = (shape.first_block..shape.first_graph_block).map(forward).sum();
    let graph: f64 = (shape.first_graph_block..layers).map(forward).sum();
    // the backward of a frozen product is one product, that of a trained one is two; a checkpointed block runs forward twice
    let backward = if is_full { 2.0 } else { 1.0 };
    let again = if shape.checkpoint_activations { 1.0 } else { 0.0 };
    let head = (1.0 + backward) * 2.0 * shape.labels * d * model.vocab_size as f64;
    let later_epochs = below + graph * (1.0 + backward + again) + head;
    let frozen = if shape.keeps {
        let (tokens, kept) = (shape.rows * all, shape.rows * shape.kept_columns);
        shape.first_block as f64 * block(tokens, tokens, all)
            + (layers - shape.first_block) as f64 * block(kept, kept, shape.kept_columns)
    } else {
        0.0
    };
    Work { first_epoch: later_epochs + frozen, later_epochs }
}

/// Share of the rate of bare matrix products that a whole step reaches: measured, see docs/performance.md.
pub const EFFICIENCY: f64 = 0.7;

/// Products that are timed last at least this long together.
const LONG_ENOUGH: Duration = Duration::from_millis(300);

/// Floating-point operations per second of the products that a step is made of: `[tokens, d] × [d, f]`, the median of several.
pub fn product_rate(tokens: i64, d: i64, f: i64, kind: Kind, device: Device) -> f64 {
    let _guard = tch::no_grad_guard();
    let (x, w) = (Tensor::ones([tokens, d], (kind, device)), Tensor::ones([f, d], (kind, device)));
    let once = || {
        let started = Instant::now();
        // reading a number waits for the device
        let _last = x.linear(&w, None::<Tensor>).double_value(&[0, 0]);
        started.elapsed()
    };
    let _warm_up = (once(), once());
    let started = Instant::now();
    let mut seconds = Vec::new();
    while started.elapsed() < LONG_ENOUGH || seconds.len() < 5 {
        seconds.push(once().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    (2 * tokens * d * f) as f64 / seconds[seconds.len() / 2]
}
