use std::ops::Range;

use tch::{Kind, Tensor};

use crate::{KvCache, Model, Past, Placement, send};

/// Smallest growth of the buffers, in tokens.
const GROWTH: usize = 64;

/// Keys and values of rows that began at different times. Each row has its own slot, filled from the first column without gaps, and grows by one
/// token per step.
///
/// Rows fill the first slots: the slot of a row that leaves goes to the last row.
#[derive(Debug)]
pub(crate) struct KvPool {
    layers: Vec<(Tensor, Tensor)>, // [slots, n_kv, capacity, d_h], on the layer's device
    shape: (i64, i64),             // n_kv, d_h
    kind: Kind,
    placement: Placement,
    /// Number of keys of each row.
    lengths: Vec<usize>,
    /// The rows of the present pass.
    part: Range<usize>,
    /// The column of the next key of each of these rows, `[b, 1, 1, 1]`, on the device of each part of the model; `None` if equal for all.
    columns: Option<Vec<Tensor>>,
}

impl KvPool {
    /// A pool without slots; [`Self::reserve`] makes them.
    pub(crate) fn new(model: &dyn Model) -> Self {
        let (description, placement) = (model.description(), model.placement().clone());
        let shape = (description.num_key_value_heads, description.head_dim);
        let empty = |layer| {
            let options = (model.kind(), placement.device(layer));
            Tensor::empty([0, shape.0, 0, shape.1], options)
        };
        let layers = 0..description.num_hidden_layers;
        let layers = layers.map(|layer| (empty(layer), empty(layer))).collect();
        let kind = model.kind();
        Self { layers, shape, kind, placement, lengths: Vec::new(), part: 0..0, columns: None }
    }

    /// Number of keys of each row, in the order of the slots.
    pub(crate) fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Bytes of all slots.
    pub(crate) fn bytes(&self) -> usize {
        let of = |x: &Tensor| x.numel() * x.kind().elt_size_in_bytes();
        self.layers.iter().map(|(keys, values)| of(keys) + of(values)).sum()
    }

    /// Makes room for `rows` rows of `tokens` tokens.
    pub(crate) fn reserve(&mut self, rows: usize, tokens: usize) {
        let Some((first, _)) = self.layers.first() else { return };
        let (slots, capacity) = (first.size()[0] as usize, first.size()[2] as usize);
        if rows <= slots && tokens <= capacity {
            return;
        }
        let capacity = match tokens > capacity {
            true if capacity > 0 => tokens.max(capacity + capacity / 2).next_multiple_of(GROWTH),
            true => tokens,
            false => capacity,
        };
        let slots =
            if rows > slots && slots > 0 { rows.max(slots + slots / 2) } else { slots.max(rows) };
        let (n_kv, d_h) = self.shape;
        let (kept, longest) = (self.lengths.len() as i64, longest(&self.lengths));
        let grown = |old: &Tensor| {
            // zeros: unreached columns have weight 0, and 0 times uninitialised memory may be NaN
            let options = (self.kind, old.device());
            let new = Tensor::zeros([slots as i64, n_kv, capacity as i64, d_h], options);
            let part = |x: &Tensor| x.narrow(0, 0, kept).narrow(2, 0, longest);
            part(&new).copy_(&part(old));
            new
        };
        for (keys, values) in &mut self.layers {
            *keys = grown(keys);
            *values = grown(values);
        }
    }

    /// Adds a row with its `length` keys and values from a prefill.
    pub(crate) fn push(&mut self, cache: &KvCache, row: usize, length: usize) {
        let (slot, n) = (self.lengths.len() as i64, length as i64);
        for (layer, (keys, values)) in self.layers.iter().enumerate() {
            let (own_keys, own_values) = cache.keys_and_values(layer);
            for (own, pool) in [(own_keys, keys), (own_values, values)] {
                pool.get(slot).narrow(1, 0, n).copy_(&own.get(row as i64).narrow(1, 0, n));
            }
        }
        self.lengths.push(length);
    }

    /// Removes a row; the last row takes its slot.
    pub(crate) fn swap_remove(&mut self, row: usize) {
        let last = self.lengths.len() - 1;
        if row < last {
            let n = self.lengths[last] as i64;
            for (keys, values) in &self.layers {
                for pool in [keys, values] {
                    let part = |slot: usize| pool.get(slot as i64).narrow(1, 0, n);
                    part(row).copy_(&part(last));
                }
            }
        }
        self.lengths.swap_remove(row);
    }

    /// Prepares a pass of one token for each row of `part`.
    pub(crate) fn begin_step(&mut self, part: Range<usize>) {
        let lengths = &self.lengths[part.clone()];
        self.part = part;
        let is_same = lengths.iter().all(|length| *length == lengths[0]);
        self.columns = (!is_same).then(|| {
            let columns: Vec<i64> = lengths.iter().map(|length| *length as i64).collect();
            let columns = Tensor::from_slice(&columns).view([-1, 1, 1, 1]);
            self.placement.devices().map(|device| send(&columns, device)).collect()
        });
    }

    /// Counts the new token of each row of the pass.
    pub(crate) fn end_step(&mut self) {
        self.lengths[self.part.clone()].iter_mut().for_each(|length| *length += 1);
    }
}

fn longest(lengths: &[usize]) -> i64 {
    lengths.iter().copied().max().unwrap_or(0) as i64
}

impl Past for KvPool {
    /// Appends the key and value of each row of the pass `[b, n_kv, 1, d_h]`, and returns keys and values up to the last column of the longest
    /// row. The mask hides the columns past the end of shorter rows.
    fn extend(&mut self, layer: usize, key: Tensor, value: Tensor) -> (Tensor, Tensor) {
        let (first, rows) = (self.part.start as i64, self.part.len() as i64);
        let longest = longest(&self.lengths[self.part.clone()]);
        let (keys, values) = &self.layers[layer];
        let extended = |pool: &Tensor, own: &Tensor| {
            let mut slots = pool.narrow(0, first, rows);
            match &self.columns {
                None => slots.narrow(2, longest, 1).copy_(own),
                Some(columns) => {
                    let index = columns[self.placement.part(layer)].expand_as(own);
                    let _ = slots.scatter_(2, &index, own);
                }
            }
            slots.narrow(2, 0, longest + 1)
        };
        (extended(keys, &key), extended(values, &value))
    }
}
