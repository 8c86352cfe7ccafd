use std::collections::HashMap;
use std::rc::Rc;

use reft_models::{
    KeyValueRecorder, Layout, Model, NoHooks, PaddingSide, Past, Reach, Result, Row, send,
};
use tch::{Device, Kind, Tensor};

/// The cached run of a base row without swaps. A later run with swaps starts from it, at any stage and token.
///
/// The row is computed by itself, so its numbers do not depend on a batch.
#[derive(Debug)]
pub(crate) struct BaseRow {
    /// The input of every stage, and the output of the last: `[stages + 1, t, d]`.
    hidden_states: Tensor,
    /// Keys and values of every block, `[blocks, 2, n_kv, t, d_h]`.
    keys_and_values: Tensor,
}

impl BaseRow {
    /// Runs a row, without autograd, to the host's memory.
    pub(crate) fn compute(model: &dyn Model, row: &Row) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let blocks = model.description().num_hidden_layers;
        let layout = Layout::new(vec![row.clone()], PaddingSide::Right)?;
        let forward = model.forward(&layout.whole(), 0);
        let mut h = forward.embed(&layout.input_ids(model.device())); // [1, t, d]
        let mut recorder = KeyValueRecorder::default();
        let mut hidden_states = vec![h.squeeze_dim(0)];
        for stage in 0..blocks {
            h = forward.run(stage..stage + 1, h, Some(&mut recorder), &mut NoHooks)?;
            hidden_states.push(h.squeeze_dim(0));
        }
        Ok(Self {
            hidden_states: Tensor::stack(&hidden_states, 0).to_device(Device::Cpu),
            keys_and_values: Tensor::stack(&recorder.0, 0).squeeze_dim(2).to_device(Device::Cpu),
        })
    }

    /// Memory that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |t: &Tensor| (t.numel() * t.kind().elt_size_in_bytes()) as u64;
        bytes(&self.hidden_states) + bytes(&self.keys_and_values)
    }

    /// The input of each row's first computed stage, `[b, width, d]`, with each row's first computed token in the first column.
    pub(crate) fn all_entering(
        rows: &[(&Rc<Self>, Reach)],
        width: i64,
        (kind, device): (Kind, Device),
    ) -> Tensor {
        let d = rows.first().map_or(0, |(row, _)| row.hidden_states.size()[2]);
        let hidden_states = Tensor::zeros([rows.len() as i64, width, d], (kind, Device::Cpu));
        for (i, (row, Reach { stage, token })) in rows.iter().enumerate() {
            let own = row.hidden_states.select(0, *stage as i64).slice(0, *token as i64, None, 1);
            hidden_states.select(0, i as i64).narrow(0, 0, own.size()[0]).copy_(&own);
        }
        send(&hidden_states, device)
    }
}

/// The cached keys and values of a batch before its computed tokens. Gradients flow only through the keys and values of computed tokens.
#[derive(Debug)]
pub(crate) struct BasePast {
    lowest: usize,
    keys_and_values: Tensor, // [blocks from the lowest stage on, 2, u, n_kv, columns, d_h]
    which: Tensor,           // [b]: for each row of the batch, the index of its entry among the u
}

impl BasePast {
    /// The past of rows that each enter at their own stage and token; `None` if no row has an earlier token, or no block runs.
    pub(crate) fn of_rows(
        rows: &[(&Rc<BaseRow>, Reach)],
        (kind, device): (Kind, Device),
    ) -> Option<Self> {
        let columns = rows.iter().map(|(_, reach)| reach.token).max()? as i64;
        let lowest = rows.iter().map(|(_, reach)| reach.stage).min()?;
        let &[blocks, two, n_kv, _, d_h] = &rows.first()?.0.keys_and_values.size()[..] else {
            unreachable!("invariant: [blocks, 2, n_kv, t, d_h]")
        };
        let blocks = blocks - lowest as i64;
        if columns == 0 || blocks == 0 {
            return None;
        }
        // rows with the same text and first computed token share keys and values
        let mut numbers: HashMap<(*const BaseRow, usize), i64> = HashMap::new();
        let (mut distinct, mut which) = (Vec::new(), Vec::with_capacity(rows.len()));
        for &(row, Reach { token, .. }) in rows {
            let next = distinct.len() as i64;
            let number = *numbers.entry((Rc::as_ptr(row), token)).or_insert(next);
            if number == next {
                distinct.push((row, token as i64));
            }
            which.push(number);
        }
        let shape = [blocks, two, distinct.len() as i64, n_kv, columns, d_h];
        let past = Tensor::zeros(shape, (kind, Device::Cpu));
        for (i, (row, token)) in distinct.into_iter().enumerate() {
            let own = row.keys_and_values.narrow(0, lowest as i64, blocks).narrow(3, 0, token);
            past.select(2, i as i64).narrow(3, columns - token, token).copy_(&own);
        }
        let which = send(&Tensor::from_slice(&which), device);
        Some(Self { lowest, keys_and_values: send(&past, device), which })
    }
}

impl Past for BasePast {
    fn extend(&mut self, layer: usize, key: Tensor, value: Tensor) -> (Tensor, Tensor) {
        let of_layer = self.keys_and_values.select(0, (layer - self.lowest) as i64);
        // the rows that have entered are the first rows of the batch
        let which = self.which.narrow(0, 0, key.size()[0]);
        let after = |i, own: &Tensor| {
            let before = of_layer.select(0, i).index_select(0, &which); // [b, n_kv, columns, d_h]
            Tensor::cat(&[&before, own], 2)
        };
        (after(0, &key), after(1, &value))
    }
}
