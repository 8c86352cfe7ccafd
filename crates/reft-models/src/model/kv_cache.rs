use tch::{Kind, Tensor};

use crate::ModelDescription;

/// Keys and values that a forward finds before those of its own columns.
pub trait Past {
    /// Takes the keys and values of a pass at a layer, `[b, n_kv, t, d_h]` each, keys turned to their positions, and returns those
    /// that its queries see: the earlier ones, then these.
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

/// Keys and values of the tokens that a model has seen, per layer, in buffers made once for the longest text to come.
///
/// For inference: what is in it carries no gradient.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>, // [b, n_kv, capacity, d_h]
    pub(crate) len: i64,           // columns that are in it
}

impl KvCache {
    /// An empty cache for `batch_size` rows of up to `capacity` columns (a prefix counts).
    pub fn new(
        model: &ModelDescription,
        batch_size: i64,
        capacity: i64,
        options: (Kind, tch::Device),
    ) -> Self {
        let shape = [batch_size, model.num_key_value_heads, capacity, model.head_dim];
        let buffer = || Tensor::empty(shape, options);
        let layers = (0..model.num_hidden_layers).map(|_| (buffer(), buffer())).collect();
        Self { layers, len: 0 }
    }

    /// What is in it for a layer: keys (rotated to their positions) and values, `[b, n_kv, len, d_h]` each.
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
    /// Appends them after the columns that are in it.
    fn extend(&mut self, layer: usize, key: Tensor, value: Tensor) -> (Tensor, Tensor) {
        let (keys, values) = &self.layers[layer];
        let t = key.size()[2];
        keys.narrow(2, self.len, t).copy_(&key.detach());
        values.narrow(2, self.len, t).copy_(&value.detach());
        (keys.narrow(2, 0, self.len + t), values.narrow(2, 0, self.len + t))
    }
}
