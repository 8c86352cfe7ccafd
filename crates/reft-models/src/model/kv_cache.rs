use std::ops::Range;

use tch::{Kind, Tensor};

use crate::{ModelDescription, Placement};

/// Keys and values of earlier columns, for a forward.
pub trait Past {
    /// Takes the keys (with RoPE applied) and values of a pass at a layer, `[b, n_kv, t, d_h]` each, and returns all that its
    /// queries see: the earlier ones, then these.
    fn extend(&mut self, layer: usize, key: Tensor, value: Tensor) -> (Tensor, Tensor);
}

/// Keeps the keys and values that a forward computes: `[2, b, n_kv, t, d_h]` of each block.
#[derive(Debug, Default)]
pub struct KeyValueRecorder(pub Vec<Tensor>);

impl Past for KeyValueRecorder {
    fn extend(&mut self, _layer: usize, key: Tensor, value: Tensor) -> (Tensor, Tensor) {
        self.0.push(Tensor::stack(&[&key, &value], 0));
        (key, value)
    }
}

/// Keys and values of the tokens seen so far, per layer, in buffers that are allocated once for the longest row.
///
/// For inference: its tensors carry no gradient. Each layer's are on the layer's device.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>, // [b, n_kv, capacity, d_h]
    parts: Vec<Range<usize>>,      // the layers of each part of the model
    pub(crate) len: i64,           // number of filled columns
}

impl KvCache {
    /// An empty cache for `batch_size` rows of up to `capacity` columns (a prefix counts).
    pub fn new(
        model: &ModelDescription,
        batch_size: i64,
        capacity: i64,
        options: (Kind, &Placement),
    ) -> Self {
        let shape = (batch_size, model.num_key_value_heads, capacity, model.head_dim);
        Self::of_size(model.num_hidden_layers, shape, options)
    }

    /// An empty cache of `layers` layers, `(b, n_kv, capacity, d_h)` each.
    pub(crate) fn of_size(
        layers: usize,
        (b, n_kv, capacity, d_h): (i64, i64, i64, i64),
        (kind, placement): (Kind, &Placement),
    ) -> Self {
        let buffer =
            |layer| Tensor::empty([b, n_kv, capacity, d_h], (kind, placement.device(layer)));
        let layers_of_each = (0..layers).map(|layer| (buffer(layer), buffer(layer))).collect();
        Self { layers: layers_of_each, parts: placement.runs(0..layers), len: 0 }
    }

    /// Fills an empty cache with the first keys and values of each row, as [`Self::columns_of`] gives them.
    pub(crate) fn fill(&mut self, rows: &[Vec<Tensor>]) {
        for (row, own) in rows.iter().enumerate() {
            for (layers, own) in self.parts.iter().zip(own) {
                let t = own.size()[3];
                for (at, (keys, values)) in self.layers[layers.clone()].iter().enumerate() {
                    for (i, buffer) in [keys, values].into_iter().enumerate() {
                        let own = own.get(at as i64).get(i as i64);
                        buffer.get(row as i64).narrow(1, 0, t).copy_(&own);
                    }
                }
                self.len = t;
            }
        }
    }

    /// Keys and values of some columns of a row, for each part of the model: `[layers, 2, n_kv, t, d_h]`.
    pub(crate) fn columns_of(&self, row: usize, columns: Range<usize>) -> Vec<Tensor> {
        let (start, length) = (columns.start as i64, columns.len() as i64);
        let part = |buffer: &Tensor| buffer.get(row as i64).narrow(1, start, length);
        let of_layer =
            |(keys, values): &(Tensor, Tensor)| Tensor::stack(&[part(keys), part(values)], 0);
        let of_part = |layers: &Range<usize>| {
            let own: Vec<Tensor> = self.layers[layers.clone()].iter().map(of_layer).collect();
            Tensor::stack(&own, 0)
        };
        self.parts.iter().map(of_part).collect()
    }

    /// The contents for a layer: keys (rotated to their positions) and values, `[b, n_kv, len, d_h]` each.
    pub fn keys_and_values(&self, layer: usize) -> (Tensor, Tensor) {
        let (keys, values) = &self.layers[layer];
        (keys.narrow(2, 0, self.len), values.narrow(2, 0, self.len))
    }

    /// Columns that still fit.
    pub(crate) fn room(&self) -> i64 {
        self.layers.first().map_or(0, |(keys, _)| keys.size()[2]) - self.len
    }
}

impl Past for KvCache {
    /// Appends them after the filled columns.
    fn extend(&mut self, layer: usize, key: Tensor, value: Tensor) -> (Tensor, Tensor) {
        let (keys, values) = &self.layers[layer];
        let t = key.size()[2];
        keys.narrow(2, self.len, t).copy_(&key.detach());
        values.narrow(2, self.len, t).copy_(&value.detach());
        (keys.narrow(2, 0, self.len + t), values.narrow(2, 0, self.len + t))
    }
}
