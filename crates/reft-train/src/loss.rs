use reft_models::{Adapter, Decoder, Forward, Hooks, Mode, Past, Span, Stacked};
use tch::{Kind, Reduction, Tensor};

use crate::Result;
use crate::batches::Batch;
use crate::computation::Computation;
use crate::prepared::{Prepared, Start, Targets};
use crate::reuse::{FrozenBatch, FrozenPast, FrozenStore};

/// Sum of `−log p(target)` over the target tokens of a batch: a scalar in f32, differentiable in the adapters' parameters.
///
/// Logits are computed only where a target is predicted, and in the last block so are queries and MLP. With `frozen`, what lies before
/// the adapters' [`Reach`](reft_models::Reach) is taken from there, and only the rest is computed; the numbers are the same to rounding. The batch's layout
/// must hold the adapters' virtual tokens.
///
/// # Errors
/// What the model or an adapter refuses.
pub fn loss_sum(
    decoder: &Decoder,
    adapters: &[&dyn Adapter],
    batch: &Batch,
    mode: Mode,
    frozen: Option<&mut FrozenStore>,
) -> Result<Tensor> {
    loss_of(decoder, Computation::new(adapters, batch, frozen), mode)
}

/// As [`loss_sum`].
pub(crate) fn loss_of(decoder: &Decoder, computation: Computation, mode: Mode) -> Result<Tensor> {
    with_run(decoder, computation, mode, |run| {
        let targets = run.targets;
        targets.loss_sum(decoder, &run.finish(decoder)?)
    })
}

/// Logits `[m, v]` that the targets of a batch are predicted by, and the targets `[m]`; without dropout.
pub(crate) fn target_logits(
    decoder: &Decoder,
    computation: Computation,
) -> Result<(Tensor, Tensor)> {
    with_run(decoder, computation, Mode::Eval, |run| {
        let targets = run.targets;
        let h = targets.of(&run.finish(decoder)?); // [m, d]
        Ok((decoder.logits(&h), targets.labels.shallow_clone()))
    })
}

/// The forward of a batch before its first stage.
pub(crate) struct Run<'r, 'l> {
    pub(crate) forward: &'r Forward<'l>,
    pub(crate) stage: usize,
    /// What goes into that stage.
    pub(crate) hidden_states: Tensor,
    pub(crate) past: Option<FrozenPast>,
    pub(crate) hooks: &'r mut Stacked<'l>,
    pub(crate) targets: &'r Targets,
}

impl Run<'_, '_> {
    /// Hidden states `[b, q, d]` after the final norm.
    fn finish(mut self, decoder: &Decoder) -> Result<Tensor> {
        let stages = self.stage..decoder.config().num_hidden_layers;
        let past = self.past.as_mut().map(|past| past as &mut dyn Past);
        let h = self.forward.run(stages, self.hidden_states, past, self.hooks)?;
        Ok(self.forward.finish(h, self.hooks)?)
    }
}

/// Begins the forward of a batch, behind what is frozen, and does something with it.
pub(crate) fn with_run<T>(
    decoder: &Decoder,
    computation: Computation,
    mode: Mode,
    act: impl FnOnce(Run) -> Result<T>,
) -> Result<T> {
    let Computation { adapters, batch, frozen, prepared } = computation;
    let prepared = match prepared {
        Some(prepared) => prepared,
        None => Prepared::now(decoder, adapters, batch, frozen)?,
    };
    let Prepared { batch, first_column, first_target, start, targets } = prepared;
    let layout = &batch.layout;
    let hooks = adapters.iter().map(|adapter| adapter.hooks(layout, mode));
    let mut hooks = Stacked(hooks.collect::<Result<_, _>>()?);

    let span = Span { layout, columns: first_column..layout.width() };
    let forward = decoder.forward(&span, hooks.prefix_length()).wanting(first_target);
    let (stage, hidden_states, past) = match start {
        Start::Frozen(FrozenBatch { hidden_states, past }) => {
            (past.stage, hidden_states, Some(past))
        }
        Start::Tokens(input_ids) => (0, forward.embed(&input_ids), None),
    };
    let (forward, hooks, targets) = (&forward, &mut hooks, &targets);
    act(Run { forward, stage, hidden_states, past, hooks, targets })
}

/// Logits that are held at once: more are computed a chunk of tokens at a time.
const LOGITS_AT_ONCE: i64 = 1 << 24;

impl Targets {
    /// Sum of `−log p(target)` from the hidden states `[b, q, d]` after the final norm.
    pub(crate) fn loss_sum(&self, decoder: &Decoder, h: &Tensor) -> Result<Tensor> {
        let rows = (LOGITS_AT_ONCE / decoder.config().vocab_size).max(1);
        Ok(cross_entropy(decoder, &self.of(h), &self.labels, rows))
    }

    /// The hidden states `[m, d]` of `[b, q, d]` that targets are predicted from.
    fn of(&self, h: &Tensor) -> Tensor {
        h.flatten(0, 1).index_select(0, &self.places)
    }
}

/// Sum of `−log p(label)` of hidden states `[m, d]`, with the logits of `rows` of them at a time.
///
/// With a frozen head, the gradient of a chunk is taken as soon as its loss is known, so that its logits can go: what is returned has
/// the value of the sum, and the gradient by way of `Σ h · ∂loss/∂h`.
fn cross_entropy(decoder: &Decoder, h: &Tensor, labels: &Tensor, rows: i64) -> Tensor {
    let head = decoder.head();
    let of_chunk = |h: &Tensor, labels: &Tensor| {
        let logits = head.logits(h);
        logits.cross_entropy_loss(labels, None::<Tensor>, Reduction::Sum, -100, 0.0)
    };
    if h.size()[0] <= rows {
        return of_chunk(h, labels);
    }
    let chunks = h.split(rows, 0).into_iter().zip(labels.split(rows, 0));
    if !h.requires_grad() || decoder.trains_head() {
        let losses: Vec<Tensor> = chunks.map(|(h, labels)| of_chunk(&h, &labels)).collect();
        return Tensor::stack(&losses, 0).sum(Kind::Float);
    }
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for (h, labels) in chunks {
        let h = h.detach().set_requires_grad(true);
        let loss = of_chunk(&h, &labels);
        gradients.extend(Tensor::run_backward(&[&loss], &[&h], false, false));
        losses.push(loss.detach());
    }
    let carrier = (h * Tensor::cat(&gradients, 0)).sum(Kind::Float);
    Tensor::stack(&losses, 0).sum(Kind::Float) + (&carrier - carrier.detach())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Logits a few at a time, all at once: loss and gradient are the same.
    #[test]
    fn chunks_of_logits_change_nothing() -> Result<()> {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/tiny_llama");
        let decoder = Decoder::open(model.as_ref(), Kind::Float, Device::Cpu)?;
        let d = decoder.config().hidden_size;
        let start = Tensor::arange(11 * d, (Kind::Float, Device::Cpu)).sin().view([11, d]);
        let labels = Tensor::from_slice(&[3i64, 9, 27, 81, 5, 25, 125, 7, 49, 2, 4]);
        let run = |rows| {
            let h = start.detach().set_requires_grad(true);
            let loss = cross_entropy(&decoder, &h, &labels, rows);
            (&loss * 0.5).backward();
            (loss.double_value(&[]), h.grad())
        };
        let (loss, gradient) = run(11);
        assert!(gradient.abs().max().double_value(&[]) > 1e-2);
        for rows in [1, 3, 4] {
            let (in_chunks, same_gradient) = run(rows);
            assert!((loss - in_chunks).abs() < 1e-6 * loss, "{loss} {in_chunks}"); // f32
            let difference = (same_gradient - &gradient).abs().max().double_value(&[]);
            assert!(difference < 1e-6, "{rows} at a time: {difference:e}"); // f32, entries of about 0.1
            let _guard = tch::no_grad_guard();
            let without = cross_entropy(&decoder, &start, &labels, rows).double_value(&[]);
            assert!((loss - without).abs() < 1e-6 * loss);
        }
        Ok(())
    }
}
