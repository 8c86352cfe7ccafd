use reft_models::{Adapter, Mode};
use serde::Serialize;

use crate::batches::Batch;
use crate::computation::Computation;
use crate::dataset::Example;
use crate::model::Model;
use crate::reuse::FrozenStore;
use crate::{Error, Result};

/// How well a model predicts the completions of some examples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LossReport {
    /// Mean of `−log p(target)` over the target tokens.
    pub loss: f64,
    /// `e^loss`.
    pub perplexity: f64,
    /// Number of target tokens.
    pub target_tokens: i64,
}

/// Loss and perplexity of a model with any number of adapters on examples; longest first, so that memory runs out at once if it does.
/// With `frozen`, what the frozen model alone decides is taken from there.
///
/// # Errors
/// [`Error::VirtualTokens`] if two adapters bring virtual tokens; what the model or an adapter refuses.
pub fn evaluate(
    model: &dyn Model,
    adapters: &[&dyn Adapter],
    examples: &[Example],
    batch_size: usize,
    mut frozen: Option<&mut FrozenStore>,
) -> Result<LossReport> {
    let virtual_tokens = virtual_tokens(adapters)?;
    let mut sorted: Vec<&Example> = examples.iter().collect();
    sorted.sort_by_key(|example| std::cmp::Reverse(example.row.input_ids.len()));
    let (mut sum, mut target_tokens) = (0.0, 0);
    let _guard = tch::no_grad_guard();
    for examples in sorted.chunks(batch_size.max(1)) {
        let batch = Batch::collate(examples.iter().copied(), virtual_tokens)?;
        let computation = Computation::new(adapters, &batch, frozen.as_deref_mut());
        sum += model.loss_sum(computation, Mode::Eval)?.double_value(&[]); // sync
        target_tokens += batch.n_targets();
    }
    let loss = sum / target_tokens as f64;
    Ok(LossReport { loss, perplexity: loss.exp(), target_tokens })
}

/// Number of virtual tokens that a layout for these adapters holds.
fn virtual_tokens(adapters: &[&dyn Adapter]) -> Result<usize> {
    let with: Vec<usize> =
        adapters.iter().map(|adapter| adapter.virtual_tokens()).filter(|&n| n > 0).collect();
    match with[..] {
        [] => Ok(0),
        [n] => Ok(n),
        _ => Err(Error::VirtualTokens { found: with.len() }),
    }
}
