use std::rc::Rc;

use reft_models::{Decoder, Layout, NoHooks, PaddingSide, Past, Reach, Row, Span, send};
use tch::{Device, Kind, Tensor};

use crate::Result;

/// What the frozen model alone decides of a row: all that is before a method's [`Reach`].
///
/// It does not depend on the batch that asks for it: the row is computed by itself, or beside the rows of its
/// [group](crate::reuse::groups::Groups).
#[derive(Debug)]
pub(crate) struct FrozenRow {
    /// What goes into stage `stage` at the tokens from `token` on: `[t − token, d]`.
    hidden_states: Tensor,
    /// Keys and values of the tokens before `token`, of the blocks from `stage` on: `[blocks, 2, n_kv, token, d_h]`. `None` if there
    /// is no such token or block.
    keys_and_values: Option<Tensor>,
}

impl FrozenRow {
    /// Computes them side by side, without autograd, to the host's memory. The reaches are of one stage.
    pub(crate) fn compute(decoder: &Decoder, rows: &[(Row, Reach)]) -> Result<Vec<Self>> {
        let _guard = tch::no_grad_guard();
        let blocks = decoder.config().num_hidden_layers;
        let stage = rows.iter().map(|(_, reach)| reach.stage).min().unwrap_or(0);
        let tokens = rows.iter().map(|(_, reach)| reach.token).max().unwrap_or(0);
        let layout =
            Layout::new(rows.iter().map(|(row, _)| row.clone()).collect(), PaddingSide::Right)?;
        let forward = decoder.forward(&layout.whole(), 0);
        let embeddings = forward.embed(&layout.input_ids(decoder.device()));
        let h = forward.run(0..stage, embeddings, None, &mut NoHooks)?; // [b, t, d]
        let mut kept = Kept(Vec::with_capacity(blocks - stage));
        if tokens > 0 && stage < blocks {
            let before = Span { layout: &layout, columns: 0..tokens };
            let forward = decoder.forward(&before, 0).wanting(tokens - 1); // of the last block, keys and values are enough
            let before = h.narrow(1, 0, tokens as i64);
            let _ = forward.run(stage..blocks, before, Some(&mut kept), &mut NoHooks)?;
        }
        let of_row = |(i, (row, reach)): (usize, &(Row, Reach))| {
            let (i, t, token) = (i as i64, row.input_ids.len() as i64, reach.token as i64);
            let of_block = |kv: &Tensor| kv.select(1, i).narrow(2, 0, token);
            let keys_and_values = (token > 0 && !kept.0.is_empty()).then(|| {
                let of_blocks: Vec<Tensor> = kept.0.iter().map(of_block).collect();
                Tensor::stack(&of_blocks, 0).to_device(Device::Cpu)
            });
            // a copy, so that the rest of h is let go
            let hidden_states = h.select(0, i).narrow(0, token, t - token).copy();
            Self { hidden_states: hidden_states.to_device(Device::Cpu), keys_and_values }
        };
        Ok(rows.iter().enumerate().map(of_row).collect())
    }

    /// Memory that a row of `t` tokens will take.
    pub(crate) fn bytes_of(decoder: &Decoder, t: usize, reach: Reach) -> usize {
        let config = decoder.config();
        let blocks = config.num_hidden_layers - reach.stage;
        let of_token = 2 * blocks * (config.num_key_value_heads * config.head_dim) as usize;
        let numbers = (t - reach.token) * config.hidden_size as usize + reach.token * of_token;
        numbers * decoder.kind().elt_size_in_bytes()
    }

    /// Computes what every reach needs: one more dimension in front, `[stages, t, d]`, and keys and values of all blocks and tokens.
    pub(crate) fn compute_whole(decoder: &Decoder, row: &Row) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let blocks = decoder.config().num_hidden_layers;
        let layout = Layout::new(vec![row.clone()], PaddingSide::Right)?;
        let forward = decoder.forward(&layout.whole(), 0);
        let mut h = forward.embed(&layout.input_ids(decoder.device())); // [1, t, d]
        let mut kept = Kept(Vec::with_capacity(blocks));
        let mut hidden_states = vec![h.squeeze_dim(0)];
        for stage in 0..blocks {
            h = forward.run(stage..stage + 1, h, Some(&mut kept), &mut NoHooks)?;
            hidden_states.push(h.squeeze_dim(0));
        }
        let hidden_states = Tensor::stack(&hidden_states, 0).to_device(Device::Cpu);
        let keys_and_values = Tensor::stack(&kept.0, 0).squeeze_dim(2).to_device(Device::Cpu);
        Ok(Self { hidden_states, keys_and_values: Some(keys_and_values) })
    }

    /// The part of a [`Self::compute_whole`] row that a reach needs; it shares the storage.
    pub(crate) fn at(&self, reach: Reach) -> Self {
        let (stage, token) = (reach.stage as i64, reach.token as i64);
        let h = self.hidden_states.select(0, stage); // [t, d]
        let hidden_states = h.narrow(0, token, h.size()[0] - token);
        let blocks = self.hidden_states.size()[0] - 1;
        let needed = self.keys_and_values.as_ref().filter(|_| token > 0 && stage < blocks);
        let keys_and_values =
            needed.map(|kv| kv.narrow(0, stage, blocks - stage).narrow(3, 0, token));
        Self { hidden_states, keys_and_values }
    }

    /// A row read back from what [`Self::tensors`] gave.
    pub(crate) fn from_tensors(hidden_states: Tensor, keys_and_values: Option<Tensor>) -> Self {
        Self { hidden_states, keys_and_values }
    }

    /// Its tensors: hidden states, and keys and values if there are any.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.hidden_states).chain(&self.keys_and_values)
    }

    /// Memory that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.tensors().map(|t| t.numel() * t.kind().elt_size_in_bytes()).sum()
    }
}

/// Keeps the keys and values that a forward computes: `[2, b, n_kv, t, d_h]` of each block.
struct Kept(Vec<Tensor>);

impl Past for Kept {
    fn extend(&mut self, _layer: usize, key: Tensor, value: Tensor) -> (Tensor, Tensor) {
        self.0.push(Tensor::stack(&[&key, &value], 0));
        (key, value)
    }
}

/// Hidden states of rows side by side on a device, `[b, width, d]`: what goes into a stage in the columns from the first touched token
/// on.
pub(crate) fn side_by_side(
    rows: &[Rc<FrozenRow>],
    width: i64,
    (kind, device): (Kind, Device),
) -> Tensor {
    let d = rows.first().map_or(0, |row| row.hidden_states.size()[1]);
    let hidden_states = Tensor::zeros([rows.len() as i64, width, d], (kind, Device::Cpu));
    for (i, row) in rows.iter().enumerate() {
        let t = row.hidden_states.size()[0];
        hidden_states.select(0, i as i64).narrow(0, 0, t).copy_(&row.hidden_states);
    }
    send(&hidden_states, device)
}

/// Keys and values of columns that are frozen; gradients flow through those that come after them.
#[derive(Debug)]
pub(crate) struct FrozenPast {
    stage: usize,
    keys_and_values: Option<Tensor>, // [blocks, 2, u, n_kv, columns, d_h]
    which: Option<Tensor>, // [b]: for each row of the batch, the one of the u that is its own; None: u = b in order
}

impl FrozenPast {
    /// Of rows that all begin at `stage`, with `columns` before their first touched tokens; `which` of them each row of the batch is.
    pub(crate) fn of_rows(
        rows: &[Rc<FrozenRow>],
        which: &[i64],
        stage: usize,
        columns: i64,
        (kind, device): (Kind, Device),
    ) -> Self {
        let mut past: Option<Tensor> = None;
        for (i, row) in rows.iter().enumerate() {
            if let Some(own) = &row.keys_and_values {
                let [blocks, two, n_kv, token, d_h] = own.size()[..] else {
                    unreachable!("invariant: [blocks, 2, n_kv, token, d_h]")
                };
                let shape = [blocks, two, rows.len() as i64, n_kv, columns, d_h];
                let past = past.get_or_insert_with(|| Tensor::zeros(shape, (kind, Device::Cpu)));
                past.select(2, i as i64).narrow(3, columns - token, token).copy_(own);
            }
        }
        let is_in_order = which.iter().copied().eq(0..rows.len() as i64);
        let which = (!is_in_order).then(|| send(&Tensor::from_slice(which), device));
        Self { stage, keys_and_values: past.map(|past| send(&past, device)), which }
    }
}

impl Past for FrozenPast {
    fn extend(&mut self, layer: usize, key: Tensor, value: Tensor) -> (Tensor, Tensor) {
        let Some(past) = &self.keys_and_values else { return (key, value) };
        let of_layer = past.select(0, (layer - self.stage) as i64);
        // rows that have not begun yet stand behind those that have
        let which = self.which.as_ref().map(|which| which.narrow(0, 0, key.size()[0]));
        let after = |i, own: &Tensor| {
            let before = of_layer.select(0, i); // [u, n_kv, columns, d_h]
            let before = match &which {
                Some(which) => before.index_select(0, which),
                None => before.narrow(0, 0, own.size()[0]),
            };
            Tensor::cat(&[&before, own], 2)
        };
        (after(0, &key), after(1, &value))
    }
}
