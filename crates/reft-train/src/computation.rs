use reft_models::Adapter;

use crate::batches::Batch;
use crate::prepared::Prepared;
use crate::reuse::FrozenStore;

/// What a model computes: a batch, under the hooks of adapters.
pub struct Computation<'a, 'd> {
    /// The adapters, whose hooks see the hidden states in this order.
    pub adapters: &'a [&'a dyn Adapter],
    /// The rows and what is to be predicted of them. Its layout must hold the adapters' virtual tokens.
    pub batch: &'a Batch,
    /// Where the frozen model's part of the rows is kept; `None`: all of it is computed.
    pub frozen: Option<&'a mut FrozenStore<'d>>,
    /// The batch as [`Model::prepare`](crate::Model::prepare) has made it ready for these adapters; `None`: it is made ready now.
    pub prepared: Option<Prepared>,
}

impl<'a, 'd> Computation<'a, 'd> {
    /// The computation of a batch.
    pub fn new(
        adapters: &'a [&'a dyn Adapter],
        batch: &'a Batch,
        frozen: Option<&'a mut FrozenStore<'d>>,
    ) -> Self {
        Self { adapters, batch, frozen, prepared: None }
    }
}

/// How a loss is differentiated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backward {
    /// The gradient of `factor` times the loss is added to the parameters' gradients.
    pub factor: f64,
    /// Decides dropout.
    pub seed: u64,
}
