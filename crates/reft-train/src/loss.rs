use std::ops::Range;

use reft_models::{Adapter, Decoder, Forward, Hooks, Layout, Mode, Past, Span, Stacked};
use tch::{Kind, Reduction, Tensor};

use crate::Result;
use crate::batches::Batch;
use crate::computation::Computation;
use crate::prepared::{Entering, Prepared, Start, Targets};
use crate::reuse::{FrozenPast, FrozenStore};

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
    let losses = target_losses(decoder, Computation::new(adapters, batch, frozen), mode)?;
    Ok(losses.sum(Kind::Float))
}

/// `−log p(target)` of every target token of a batch, `[m]`, as [`loss_sum`] sums them.
pub(crate) fn target_losses(
    decoder: &Decoder,
    computation: Computation,
    mode: Mode,
) -> Result<Tensor> {
    with_run(decoder, computation, mode, |run| {
        let targets = run.targets;
        targets.losses(decoder, &run.finish()?)
    })
}

/// Logits `[m, v]` that the targets of a batch are predicted by, and the targets `[m]`; without dropout. With `answers` `[a]`, the logits
/// of these tokens only, `[m, a]`.
pub(crate) fn target_logits(
    decoder: &Decoder,
    computation: Computation,
    answers: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    with_run(decoder, computation, Mode::Eval, |run| {
        let targets = run.targets;
        let h = targets.of(&run.finish()?); // [m, d]
        let head = match answers {
            Some(answers) => decoder.head().of_tokens(answers),
            None => decoder.head(),
        };
        Ok((head.logits(&h), targets.labels.shallow_clone()))
    })
}

/// The forward of a batch before its first stage.
pub(crate) struct Run<'r, 'l> {
    /// The lowest stage first; each has the rows of the one before it and those that begin with it. At least one.
    pub(crate) entries: Vec<Entry<'l>>,
    pub(crate) past: Option<FrozenPast>,
    pub(crate) hooks: &'r mut Stacked<'l>,
    pub(crate) targets: &'r Targets,
}

/// Rows that come into a forward at a stage.
pub(crate) struct Entry<'l> {
    /// From the one that they come in at to that where the next come in, or to the end.
    pub(crate) stages: Range<usize>,
    /// Of these rows and those that came before.
    pub(crate) forward: Forward<'l>,
    /// What goes into the stage, of these rows alone.
    pub(crate) hidden_states: Tensor,
}

impl Run<'_, '_> {
    /// Hidden states `[b, q, d]` after the final norm.
    fn finish(mut self) -> Result<Tensor> {
        let mut running = None;
        for entry in &self.entries {
            let past = self.past.as_mut().map(|past| past as &mut dyn Past);
            let h = entry.join(running);
            running = Some(entry.forward.run(entry.stages.clone(), h, past, self.hooks)?);
        }
        let last = self.entries.last().zip(running);
        let (entry, h) = last.expect("invariant: a run has an entry");
        Ok(entry.forward.finish(h, self.hooks)?)
    }
}

impl Entry<'_> {
    /// What goes into the stage: the rows that are under way, and those that come in.
    pub(crate) fn join(&self, running: Option<Tensor>) -> Tensor {
        let own = &self.hidden_states;
        let Some(running) = running else { return own.shallow_clone() };
        // the last block gives the wanted columns only
        let (t, width) = (running.size()[1], own.size()[1]);
        Tensor::cat(&[&running, &own.narrow(1, width - t, t)], 0)
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
    let begun: Vec<Layout>; // the rows that have, at every entry but the last
    let hooks = adapters.iter().map(|adapter| adapter.hooks(layout, mode));
    let mut hooks = Stacked(hooks.collect::<Result<_, _>>()?);
    let prefix = hooks.prefix_length();
    let forward_of = |layout| {
        let span = Span { layout, columns: first_column..batch.layout.width() };
        decoder.forward(&span, prefix).wanting(first_target)
    };

    let blocks = decoder.config().num_hidden_layers;
    let (entries, past) = match start {
        Start::Tokens(input_ids) => {
            let forward = forward_of(layout);
            let hidden_states = forward.embed(&input_ids);
            (vec![Entry { stages: 0..blocks, forward, hidden_states }], None)
        }
        Start::Frozen { entering, past } => {
            let ends: Vec<usize> =
                entering.iter().skip(1).map(|next| next.stage).chain([blocks]).collect();
            let keep = |of: &Entering| layout.keep_rows(&(0..of.begun).collect::<Vec<_>>());
            begun = entering[..entering.len() - 1].iter().map(keep).collect();
            let layouts = begun.iter().chain([layout]);
            let entry = |((Entering { stage, hidden_states, .. }, end), layout)| Entry {
                stages: stage..end,
                forward: forward_of(layout),
                hidden_states,
            };
            (entering.into_iter().zip(ends).zip(layouts).map(entry).collect(), Some(past))
        }
    };
    act(Run { entries, past, hooks: &mut hooks, targets: &targets })
}

/// Logits that are held at once: more are computed a chunk of tokens at a time.
const LOGITS_AT_ONCE: i64 = 1 << 24;

impl Targets {
    /// `−log p(target)` `[m]` from the hidden states `[b, q, d]` after the final norm.
    pub(crate) fn losses(&self, decoder: &Decoder, h: &Tensor) -> Result<Tensor> {
        let rows = (LOGITS_AT_ONCE / decoder.config().vocab_size).max(1);
        Ok(cross_entropy(decoder, &self.of(h), &self.labels, rows))
    }

    /// The hidden states `[m, d]` of `[b, q, d]` that targets are predicted from.
    fn of(&self, h: &Tensor) -> Tensor {
        h.flatten(0, 1).index_select(0, &self.places)
    }
}

/// `−log p(label)` `[m]` of hidden states `[m, d]`, with the logits of `rows` of them at a time.
///
/// With a frozen head, the gradient of a chunk is taken as soon as its losses are known, so that its logits can go: what is returned has
/// the values of the losses, and the gradients by way of `Σ h · ∂loss/∂h`, a sum for each of them.
fn cross_entropy(decoder: &Decoder, h: &Tensor, labels: &Tensor, rows: i64) -> Tensor {
    let head = decoder.head();
    let of_chunk = |h: &Tensor, labels: &Tensor| {
        let logits = head.logits(h);
        logits.cross_entropy_loss(labels, None::<Tensor>, Reduction::None, -100, 0.0)
    };
    if h.size()[0] <= rows {
        return of_chunk(h, labels);
    }
    let chunks = h.split(rows, 0).into_iter().zip(labels.split(rows, 0));
    if !h.requires_grad() || decoder.trains_head() {
        let losses: Vec<Tensor> = chunks.map(|(h, labels)| of_chunk(&h, &labels)).collect();
        return Tensor::cat(&losses, 0);
    }
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for (h, labels) in chunks {
        let h = h.detach().set_requires_grad(true);
        let own = of_chunk(&h, &labels);
        gradients.extend(Tensor::run_backward(&[own.sum(Kind::Float)], &[&h], false, false));
        losses.push(own.detach());
    }
    let gradients = Tensor::cat(&gradients, 0); // a loss depends on its own row of h alone
    let carrier = (h * gradients).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
    Tensor::cat(&losses, 0) + (&carrier - carrier.detach())
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
            let loss = cross_entropy(&decoder, &h, &labels, rows).sum(Kind::Float);
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
            let without = cross_entropy(&decoder, &start, &labels, rows).sum(Kind::Double);
            let without = without.double_value(&[]);
            assert!((loss - without).abs() < 1e-6 * loss);
        }
        Ok(())
    }
}
