use std::collections::HashMap;
use std::rc::Rc;

use reft_models::{
    Adapter, Decoder, Forward, Hooks, Layout, Mode, Past, Reach, Row, Span, Stacked,
};
use tch::{Kind, Reduction, Tensor};

use crate::Result;
use crate::batches::Batch;
use crate::reuse::{FrozenPast, FrozenRow, FrozenStore, side_by_side};

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
    let losses = target_losses(decoder, adapters, batch, mode, frozen)?;
    Ok(losses.sum(Kind::Float))
}

/// `−log p(target)` of every target token of a batch, `[m]`, as [`loss_sum`] sums them.
pub(crate) fn target_losses(
    decoder: &Decoder,
    adapters: &[&dyn Adapter],
    batch: &Batch,
    mode: Mode,
    frozen: Option<&mut FrozenStore>,
) -> Result<Tensor> {
    with_run(decoder, adapters, batch, mode, (frozen, Begin::EachRow), |run| {
        let targets = run.targets;
        targets.losses(decoder, &run.finish(decoder)?)
    })
}

/// Logits `[m, v]` that the targets of a batch are predicted by, and the targets `[m]`; without dropout. With `answers` `[a]`, the logits
/// of these tokens only, `[m, a]`.
pub(crate) fn target_logits(
    decoder: &Decoder,
    adapters: &[&dyn Adapter],
    batch: &Batch,
    answers: Option<&Tensor>,
    frozen: Option<&mut FrozenStore>,
) -> Result<(Tensor, Tensor)> {
    with_run(decoder, adapters, batch, Mode::Eval, (frozen, Begin::EachRow), |run| {
        let targets = run.targets;
        let h = targets.of(&run.finish(decoder)?); // [m, d]
        let head = match answers {
            Some(answers) => decoder.head().of_tokens(answers),
            None => decoder.head(),
        };
        Ok((head.logits(&h), targets.labels.shallow_clone()))
    })
}

/// Where the rows of a batch begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// Each at its own stage, if the rows come in the order of their stages; else all at the lowest.
    EachRow,
    /// All at the lowest.
    Together,
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
    pub(crate) stage: usize,
    /// Of these rows and those that came before.
    pub(crate) forward: Forward<'l>,
    /// What goes into the stage, of these rows alone.
    pub(crate) hidden_states: Tensor,
}

impl Run<'_, '_> {
    /// Hidden states `[b, q, d]` after the final norm.
    fn finish(mut self, decoder: &Decoder) -> Result<Tensor> {
        let blocks = decoder.config().num_hidden_layers;
        let mut running: Option<Tensor> = None;
        for (i, entry) in self.entries.iter().enumerate() {
            let end = self.entries.get(i + 1).map_or(blocks, |next| next.stage);
            let own = &entry.hidden_states;
            let h = match running {
                // the last block gives the wanted columns only
                Some(h) => {
                    let (t, width) = (h.size()[1], own.size()[1]);
                    Tensor::cat(&[&h, &own.narrow(1, width - t, t)], 0)
                }
                None => own.shallow_clone(),
            };
            let past = self.past.as_mut().map(|past| past as &mut dyn Past);
            running = Some(entry.forward.run(entry.stage..end, h, past, self.hooks)?);
        }
        let last = self.entries.last().zip(running);
        let (Entry { forward, .. }, h) = last.expect("invariant: a run has an entry");
        Ok(forward.finish(h, self.hooks)?)
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
    (frozen, begin): (Option<&mut FrozenStore>, Begin),
    act: impl FnOnce(Run) -> Result<T>,
) -> Result<T> {
    let resumed = match frozen {
        Some(store) => Resumed::new(decoder, adapters, batch, (store, begin))?,
        None => None,
    };
    let (aligned, start) = resumed.map(|r| (r.batch, (r.column, r.past, r.entering))).unzip();
    let batch = aligned.as_ref().unwrap_or(batch);
    let layout = &batch.layout;
    let device = decoder.device();
    let (column, past, entering) = match start {
        Some((column, past, entering)) => (column, Some(past), entering),
        None => (0, None, Vec::new()),
    };
    // of the rows that have begun, for all entries but the last
    let keep = |entering: &Entering| layout.keep_rows(&(0..entering.end).collect::<Vec<_>>());
    let begun: Vec<Layout> = entering.iter().rev().skip(1).rev().map(keep).collect();

    let hooks = adapters.iter().map(|adapter| adapter.hooks(layout, mode));
    let mut hooks = Stacked(hooks.collect::<Result<_, _>>()?);
    let prefix = hooks.prefix_length();
    let wanted = batch.first_target_column();
    let forward_of = |layout| {
        let span = Span { layout, columns: column..batch.layout.width() };
        decoder.forward(&span, prefix).wanting(wanted)
    };
    let entry = |(Entering { stage, hidden_states, .. }, layout)| Entry {
        stage,
        forward: forward_of(layout),
        hidden_states,
    };
    let mut entries: Vec<Entry> =
        entering.into_iter().zip(begun.iter().chain([layout])).map(entry).collect();
    if entries.is_empty() {
        let forward = forward_of(layout);
        let hidden_states = forward.embed(&layout.input_ids(device));
        entries.push(Entry { stage: 0, forward, hidden_states });
    }
    let all = entries.last().expect("invariant: a run has an entry");
    let (places, labels) = batch.targets(all.forward.outputs());
    let targets = Targets {
        places: Tensor::from_slice(&places).to_device(device),
        labels: Tensor::from_slice(&labels).to_device(device),
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

/// A forward that begins where the adapters do.
struct Resumed {
    batch: Batch, // aligned at each row's first touched token
    column: usize,
    past: FrozenPast,
    entering: Vec<Entering>,
}

/// Rows that begin at one stage.
struct Entering {
    stage: usize,
    end: usize, // of the rows that have begun then
    hidden_states: Tensor,
}

impl Resumed {
    /// `None` if there is nothing before the adapters' reach.
    fn new(
        decoder: &Decoder,
        adapters: &[&dyn Adapter],
        batch: &Batch,
        (store, begin): (&mut FrozenStore, Begin),
    ) -> Result<Option<Self>> {
        if batch.layout.virtual_tokens() > 0 {
            return Ok(None); // what stands before every token is not frozen
        }
        let reach = |(row, first): (&Row, usize)| {
            let none = Reach { stage: decoder.config().num_hidden_layers, token: first };
            adapters.iter().map(|adapter| adapter.reach(row)).fold(none, Reach::and)
        };
        let rows = batch.layout.rows();
        let mut reaches: Vec<Reach> = rows.iter().zip(batch.first_targets()).map(reach).collect();
        let lowest = reaches.iter().map(|reach| reach.stage).min().unwrap_or(0);
        if lowest == 0 && reaches.iter().all(|reach| reach.token == 0) {
            return Ok(None);
        }
        if begin == Begin::Together || !reaches.is_sorted_by_key(|reach| reach.stage) {
            reaches.iter_mut().for_each(|reach| reach.stage = lowest);
        }
        let tokens: Vec<usize> = reaches.iter().map(|reach| reach.token).collect();
        let column = tokens.iter().copied().max().unwrap_or(0);
        let aligned = batch.aligned(&tokens)?;
        let width = (aligned.layout.width() - column) as i64;
        let options = (decoder.kind(), decoder.device());

        // rows of one text have the same keys and values
        let mut known: HashMap<(&[i64], usize), i64> = HashMap::new();
        let (mut frozen, mut which) = (Vec::new(), Vec::with_capacity(rows.len()));
        for (row, &token) in rows.iter().zip(&tokens) {
            let new = known.len() as i64;
            let number = *known.entry((&row.input_ids, token)).or_insert(new);
            if number == new {
                frozen.push(store.row(decoder, row, Reach { stage: lowest, token })?);
            }
            which.push(number);
        }
        let past = FrozenPast::of_rows(&frozen, &which, lowest, column as i64, options);

        let (mut entering, mut start) = (Vec::new(), 0);
        for of_stage in reaches.chunk_by(|a, b| a.stage == b.stage) {
            let (stage, end) = (of_stage[0].stage, start + of_stage.len());
            let own = |i: usize| match stage == lowest {
                true => Ok(Rc::clone(&frozen[which[i] as usize])),
                false => store.row(decoder, &rows[i], reaches[i]),
            };
            let own: Vec<Rc<FrozenRow>> = (start..end).map(own).collect::<Result<_>>()?;
            let hidden_states = side_by_side(&own, width, options);
            entering.push(Entering { stage, end, hidden_states });
            start = end;
        }
        Ok(Some(Self { batch: aligned, column, past, entering }))
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
