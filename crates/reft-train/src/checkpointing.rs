use reft_models::{Decoder, Hooks, Mode, Past};
use tch::{Kind, Tensor};

use crate::Result;
use crate::computation::{Backward, Computation};
use crate::loss::{Entry, Run, with_run};
use crate::seed::seed_of;

/// Activation checkpointing (Chen et al. 2016, arXiv:1604.06174), one segment per block: adds `factor · ∂loss/∂θ` to the gradients of
/// the adapters' parameters, and returns the loss, the sum of [`loss_sum`](crate::loss_sum).
///
/// The forward keeps what goes into each block and nothing else; in the backward each block is run again, with its hooks, and
/// differentiated by itself. So memory holds the inputs of all blocks and the activations of one. Dropout falls alike in both runs of a
/// block.
///
/// # Errors
/// What the model or an adapter refuses.
pub(crate) fn checkpointed_backward(
    decoder: &Decoder,
    computation: Computation,
    Backward { factor, seed }: Backward,
) -> Result<Tensor> {
    with_run(decoder, computation, Mode::Train, |run| {
        let Run { entries, mut past, hooks, targets } = run;
        let cuts = hooks.cut();
        let mut block = |entry: &Entry, k: usize, h: Tensor, hooks: &mut dyn Hooks| {
            tch::manual_seed(seed_of(&[seed, k as u64]) as i64);
            let past = past.as_mut().map(|past| past as &mut dyn Past);
            entry.forward.run(k..k + 1, h, past, hooks)
        };
        let mut inputs = Vec::with_capacity(decoder.config().num_hidden_layers);
        let mut running = None;
        {
            let _guard = tch::no_grad_guard();
            for entry in &entries {
                let mut h = entry.join(running);
                for k in entry.stages.clone() {
                    inputs.push((entry, k, h.shallow_clone()));
                    h = block(entry, k, h, hooks)?;
                }
                running = Some(h);
            }
        }
        let last = entries.last().zip(running);
        let (Entry { forward, .. }, h) = last.expect("invariant: a run has an entry");
        let mut output = h.detach().set_requires_grad(true);
        let h = forward.finish(output.shallow_clone(), hooks)?;
        let loss = targets.losses(decoder, &h)?.sum(Kind::Float);
        (&loss * factor).backward();
        drop(h);
        while let Some((entry, k, input)) = inputs.pop() {
            let gradient = output.grad();
            // Below the first block there is something to train only if the embeddings are trained.
            let is_first = inputs.is_empty();
            let is_needed = !is_first || input.requires_grad();
            let leaf = input.detach().set_requires_grad(is_needed);
            let again = block(entry, k, leaf.shallow_clone(), hooks)?;
            if again.requires_grad() {
                // what rows that came in above went in with is frozen
                hand_on(&again, &gradient.narrow(0, 0, again.size()[0]));
            }
            if is_first && is_needed {
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
