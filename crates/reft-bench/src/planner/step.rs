use std::time::{Duration, Instant};

use reft_models::{AdapterStack, Decoder, ModelDescription, Weights};
use reft_train::{Learner, NextToken};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::planner::memory::{self, MemoryPlan, StepBytes};
use crate::{Precision, Result, TimingCase};

/// Memory and work of a training step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepPlan {
    /// Trained parameters.
    pub trainable_parameters: i64,
    /// At the peak of a step.
    pub memory: MemoryPlan,
    /// Bytes kept per row for later epochs; 0 if nothing can be kept or reuse is off.
    pub kept_row: u64,
    /// The operations.
    pub work: Work,
}

/// Floating-point operations of one step, in matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Work {
    /// On rows that were not seen before.
    pub first_epoch: f64,
    /// On rows whose frozen part is kept; equal to `first_epoch` if none is.
    pub later_epochs: f64,
}

/// The part of a step that is computed and differentiated.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// Rows of the batch.
    pub(super) rows: f64,
    /// Columns that run through the blocks.
    pub(super) columns: f64,
    /// Columns before those, whose keys and values are kept.
    pub(super) kept_columns: f64,
    /// Columns whose output of the last block is needed.
    pub(super) wanted_columns: f64,
    /// Labelled tokens of the batch.
    pub(super) labels: f64,
    /// The first block that runs, and the first that is differentiated.
    pub(super) first_block: usize,
    pub(super) first_graph_block: usize,
    pub(super) keeps: bool,
    pub(super) checkpoint_activations: bool,
    /// Whether weights are packed. Then the weights of a block or of the head are expanded while in use.
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
            // packed weights are expanded one block at a time, so each block is checkpointed
            checkpoint_activations: case.checkpoint_activations || case.is_packed(),
            is_packed: case.is_packed(),
            kind_bytes: case.kind.kind().elt_size_in_bytes() as f64,
            kv: (model.num_key_value_heads * model.head_dim) as f64,
        }
    }

    /// Bytes of the hidden states kept per row, of the columns that run.
    pub(super) fn kept_states(&self, model: &ModelDescription) -> f64 {
        self.kind_bytes * self.columns * model.hidden_size as f64
    }

    /// Bytes of the keys and values kept per row and block: of the columns before the first one that runs.
    pub(super) fn kept_block(&self) -> f64 {
        self.kind_bytes * 2.0 * self.kv * self.kept_columns
    }

    fn kept_row_bytes(&self, model: &ModelDescription) -> f64 {
        let blocks = (model.num_hidden_layers - self.first_block) as f64;
        self.kept_states(model) + blocks * self.kept_block()
    }

    /// The same step with another number of rows.
    pub(super) fn with_rows(&self, rows: usize) -> Self {
        let labels = self.labels / self.rows * rows as f64;
        Self { rows: rows as f64, labels, ..*self }
    }
}

/// Shapes and weight sizes of a case that [`TimingCase::check`] accepts, without reading or making a weight.
#[derive(Debug)]
pub(super) struct Needs {
    pub(super) model: ModelDescription,
    pub(super) shape: Shape,
    /// Bytes per token that the method's own backward keeps, for each block.
    pub(super) extra: Vec<f64>,
    /// For each trained tensor the block that its name contains, and how many numbers the tensor has.
    pub(super) trained: Vec<(Option<usize>, usize)>,
    /// The model's kind, and whether full fine-tuning trains the model's own weights.
    pub(super) kind: Precision,
    pub(super) is_full: bool,
    /// Bytes of the weights of each stage.
    pub(super) weights: Vec<u64>,
    /// Whether the head is the embedding matrix; then logits are computed on the embeddings' device.
    pub(super) is_tied: bool,
}

impl Needs {
    pub(super) fn of(case: &TimingCase) -> Result<Self> {
        let config = case.model_config()?;
        let (model, is_tied) = (config.describe(), config.tie_word_embeddings);
        case.check(&model)?;
        let weights = Weights::shapes_only(&model.tensors);
        let decoder = Decoder::from_weights(config, &weights, case.kind.kind(), Device::Cpu)?;
        let adapters = case.adapters(&decoder)?;
        let stack = AdapterStack::of_boxed(&adapters)?;
        let shape = Shape::new(case, &Learner::new(&decoder, &stack, &NextToken));
        let methods = case.methods(&model)?;
        let extra = methods.as_ref().map(|own| own.kept_per_token(&model, shape.kind_bytes));
        let extra = extra.transpose()?.unwrap_or_else(|| vec![0.0; model.num_hidden_layers]);
        let parameters = if methods.is_some() { stack.parameters() } else { Vec::new() };
        let layer = |name: &str| name.split(['.', '/']).find_map(|part| part.parse().ok());
        let trained = parameters.iter().map(|own| (layer(&own.name), own.tensor.numel())).collect();
        let is_full = methods.is_some_and(|methods| methods.has("full"));
        let weights = memory::of_weights(case, &model)?;
        Ok(Self { shape, extra, trained, kind: case.kind, is_full, weights, is_tied, model })
    }

    /// Bytes of some trained tensors with AdamW's copies and moments, and bytes of AdamW's temporary tensors.
    pub(super) fn optimizer(&self, trained: impl Iterator<Item = usize>) -> (u64, u64) {
        let (sum, largest) = trained.fold((0, 0), |(sum, most), n| (sum + n, most.max(n)));
        let each = memory::of_trained(self.kind, self.is_full);
        (sum as u64 * each, memory::of_update(self.kind, self.is_full, largest))
    }
}

/// Plans a step of a case that [`TimingCase::check`] accepts, from the model's shape alone: no weight is read or made.
///
/// `program` is the memory of the process without a model ([`resident_memory`](reft_train::resident_memory)).
///
/// # Errors
/// Errors of the method.
pub fn plan_step(case: &TimingCase, program: u64) -> Result<StepPlan> {
    let needs = Needs::of(case)?;
    let Needs { model, shape, .. } = &needs;
    let step = StepBytes::of(model, shape, &needs.extra);
    let all = 0..model.num_hidden_layers;
    let trained = || needs.trained.iter().map(|(_, n)| *n);
    let (optimizer, update) = needs.optimizer(trained());
    let memory = MemoryPlan {
        program: program + memory::WORKSPACE,
        weights: needs.weights.iter().sum(),
        optimizer,
        activations: step.activations(all.clone()),
        transient: step.transient(true).max(update),
        frozen_batch: step.frozen_batch(all),
    };
    let kept_row = if shape.keeps { shape.kept_row_bytes(model) as u64 } else { 0 };
    let work = work(model, shape, needs.is_full);
    Ok(StepPlan { trainable_parameters: trained().sum::<usize>() as i64, memory, kept_row, work })
}

/// Counts the matrix products of the blocks' weights, of attention, and of the head.
fn work(model: &ModelDescription, shape: &Shape, is_full: bool) -> Work {
    let layers = model.num_hidden_layers;
    let (d, f) = (model.hidden_size as f64, model.intermediate_size as f64);
    let q = (model.num_attention_heads * model.head_dim) as f64;
    // operations of one block's forward on `tokens` that see `keys` each; `wanted` of them run past the key and value projections
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
    // the backward of a frozen product is one product, of a trained one two; a checkpointed block runs forward twice
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

/// Rate of a whole step as a share of the rate of bare matrix products: measured, see docs/performance.md.
pub const EFFICIENCY: f64 = 0.7;

/// Least total time of the timed products.
const LONG_ENOUGH: Duration = Duration::from_millis(300);

/// Floating-point operations per second of a step's matrix products `[tokens, d] × [d, f]`: the median of several.
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
