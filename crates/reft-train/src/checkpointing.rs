use reft_models::{Adapter, Decoder, Hooks, Mode, Past};
use tch::{Kind, Tensor};

use crate::Result;
use crate::batches::Batch;
use crate::loss::{Begin, Entry, with_run};
use crate::reuse::FrozenStore;
use crate::seed::seed_of;

/// Activation checkpointing (Chen et al. 2016, arXiv:1604.06174), one segment per block: adds `factor · ∂loss/∂θ` to the gradients of
/// the adapters' parameters, and returns the loss, the sum of [`loss_sum`](crate::loss_sum).
///
/// The forward keeps what goes into each block and nothing else; in the backward each block is run again, with its hooks, and
/// differentiated by itself. So memory holds the inputs of all blocks and the activations of one. `seed` decides dropout, which must
/// fall alike in both runs of a block.
///
/// # Errors
/// What the model or an adapter refuses.
pub(crate) fn checkpointed_backward(
    decoder: &Decoder,
    adapters: &[&dyn Adapter],
    batch: &Batch,
    frozen: Option<&mut FrozenStore>,
    factor: f64,
    seed: u64,
) -> Result<Tensor> {
    with_run(decoder, adapters, batch, Mode::Train, (frozen, Begin::Together), |mut run| {
        let cuts = run.hooks.cut();
        let Entry { stage: first, forward, hidden_states } =
            run.entries.pop().expect("invariant: rows that begin together have one entry");
        let stages = first..decoder.config().num_hidden_layers;
        let mut past = run.past.as_mut();
        let mut stage = |stage: usize, h: Tensor, hooks: &mut dyn Hooks| {
            tch::manual_seed(seed_of(&[seed, stage as u64]) as i64);
            let past = past.as_mut().map(|past| &mut **past as &mut dyn Past);
            forward.run(stage..stage + 1, h, past, hooks)
        };
        let mut inputs = Vec::with_capacity(stages.len());
        let mut h = hidden_states;
        {
            let _guard = tch::no_grad_guard();
            for k in stages.clone() {
                inputs.push(h.shallow_clone());
                h = stage(k, h, run.hooks)?;
            }
        }
        let mut output = h.detach().set_requires_grad(true);
        let last = forward.finish(output.shallow_clone(), run.hooks)?;
        let loss = run.targets.losses(decoder, &last)?.sum(Kind::Float);
        (&loss * factor).backward();
        drop(last);
        for k in stages.rev() {
            let gradient = output.grad();
            let input = inputs.pop().expect("invariant: one input for each stage");
            // Below the first stage there is something to train only if the embeddings are trained.
            let is_needed = k > first || input.requires_grad();
            let leaf = input.detach().set_requires_grad(is_needed);
            let again = stage(k, leaf.shallow_clone(), run.hooks)?;
            if again.requires_grad() {
                hand_on(&again, &gradient);
            }
            if k == first && is_needed {
                hand_on(&input, &leaf.grad());
            }
            output = leaf;
        }
        let handed: Vec<Tensor> = cuts
            .iter()
            .filter(|cut| cut.leaf.grad().defined())
            .map(|cut| (&cut.computed * cut.leaf.grad()).sum(Kind::Float))
            .collect();
        if !handed.is_empty() {
            Tensor::stack(&handed, 0).sum(Kind::Float).backward();
        }
        Ok(loss.detach())
    })
}

/// Continues a backward that has come to `tensor` with a gradient.
fn hand_on(tensor: &Tensor, gradient: &Tensor) {
    (tensor * gradient).sum(Kind::Float).backward();
}
