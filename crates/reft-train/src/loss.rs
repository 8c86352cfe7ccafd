use reft_models::{Adapter, Decoder, Forward, Hooks, Mode, Past, Reach, Row, Span, Stacked};
use tch::{Kind, Reduction, Tensor};

use crate::Result;
use crate::batches::Batch;
use crate::reuse::{FrozenBatch, FrozenPast, FrozenStore};

/// Sum of `−log p(target)` over the target tokens of a batch: a scalar in f32, differentiable in the adapters' parameters.
///
/// Logits are computed only where a target is predicted, and in the last block so are queries and MLP. With `frozen`, what lies before
/// the adapters' [`Reach`] is taken from there, and only the rest is computed; the numbers are the same to rounding. The batch's layout
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
    with_run(decoder, adapters, batch, mode, frozen, |run| {
        let targets = run.targets;
        targets.loss_sum(decoder, &run.finish(decoder)?)
    })
}

/// Logits `[m, v]` that the targets of a batch are predicted by, and the targets `[m]`; without dropout.
pub(crate) fn target_logits(
    decoder: &Decoder,
    adapters: &[&dyn Adapter],
    batch: &Batch,
    frozen: Option<&mut FrozenStore>,
) -> Result<(Tensor, Tensor)> {
    with_run(decoder, adapters, batch, Mode::Eval, frozen, |run| {
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

/// What is to be predicted from the hidden states that a forward ends with.
#[derive(Debug)]
pub(crate) struct Targets {
    places: Tensor, // [m], in [b·q]
    labels: Tensor, // [m]
}

/// Prepares the forward of a batch, behind what is frozen, and does something with it.
pub(crate) fn with_run<T>(
    decoder: &Decoder,
    adapters: &[&dyn Adapter],
    batch: &Batch,
    mode: Mode,
    frozen: Option<&mut FrozenStore>,
    act: impl FnOnce(Run) -> Result<T>,
) -> Result<T> {
    let resumed = match frozen {
        Some(store) => Resumed::new(decoder, adapters, batch, store)?,
        None => None,
    };
    let (aligned, start) = resumed.map(|r| (r.batch, (r.stage, r.column, r.frozen))).unzip();
    let batch = aligned.as_ref().unwrap_or(batch);
    let layout = &batch.layout;
    let hooks = adapters.iter().map(|adapter| adapter.hooks(layout, mode));
    let mut hooks = Stacked(hooks.collect::<Result<_, _>>()?);
    let device = decoder.device();

    let column = start.as_ref().map_or(0, |(_, column, _)| *column);
    let span = Span { layout, columns: column..layout.width() };
    let forward = decoder.forward(&span, hooks.prefix_length());
    let forward = forward.wanting(batch.first_target_column());
    let (places, labels) = batch.targets(forward.outputs());
    let targets = Targets {
        places: Tensor::from_slice(&places).to_device(device),
        labels: Tensor::from_slice(&labels).to_device(device),
    };
    let (stage, hidden_states, past) = match start {
        Some((stage, _, FrozenBatch { hidden_states, past })) => (stage, hidden_states, Some(past)),
        None => (0, forward.embed(&layout.input_ids(device)), None),
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

/// A forward that begins where the adapters do.
struct Resumed {
    batch: Batch, // aligned at each row's first touched token
    stage: usize,
    column: usize,
    frozen: FrozenBatch,
}

impl Resumed {
    /// `None` if there is nothing before the adapters' reach.
    fn new(
        decoder: &Decoder,
        adapters: &[&dyn Adapter],
        batch: &Batch,
        store: &mut FrozenStore,
    ) -> Result<Option<Self>> {
        if batch.layout.virtual_tokens() > 0 {
            return Ok(None); // what stands before every token is not frozen
        }
        let reach = |row: &Row, first| {
            let none = Reach { stage: decoder.config().num_hidden_layers, token: first };
            adapters.iter().map(|adapter| adapter.reach(row)).fold(none, Reach::and)
        };
        let rows = batch.layout.rows();
        let reaches = rows.iter().zip(batch.first_targets()).map(|(row, first)| reach(row, first));
        let reaches: Vec<Reach> = reaches.collect();
        let stage = reaches.iter().map(|reach| reach.stage).min().unwrap_or(0);
        if stage == 0 && reaches.iter().all(|reach| reach.token == 0) {
            return Ok(None);
        }
        let tokens: Vec<usize> = reaches.iter().map(|reach| reach.token).collect();
        let token_of = |row: &Row, first| reach(row, first).token;
        let frozen = |(row, &token)| store.row(decoder, row, Reach { stage, token }, &token_of);
        let rows = rows.iter().zip(&tokens).map(frozen).collect::<Result<Vec<_>>>()?;
        let batch = batch.aligned(&tokens)?;
        let column = tokens.iter().copied().max().unwrap_or(0);
        let width = (batch.layout.width() - column) as i64;
        let options = (decoder.kind(), decoder.device());
        let frozen = FrozenBatch::of_rows(&rows, stage, column as i64, width, options);
        Ok(Some(Self { batch, stage, column, frozen }))
    }
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
