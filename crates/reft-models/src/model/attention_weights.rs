use tch::{Device, Tensor};

use crate::{AdapterStack, Error, Hooks, Layout, Mode, Model, Result};

/// Hooks that keep the attention weights of some layers.
struct SeenWeights<'a> {
    layers: &'a [usize],
    seen: Vec<(usize, Tensor)>,
}

impl Hooks for SeenWeights<'_> {
    fn wants_attention(&self, layer: usize) -> bool {
        self.layers.contains(&layer)
    }

    fn see_attention(&mut self, layer: usize, weights: Tensor) {
        self.seen.push((layer, weights.to_device(Device::Cpu)));
    }
}

/// The attention weights of layers in one run over whole rows with adapters: `[b, n_h, t, keys]` each, in f32 and without gradient.
/// The keys are first an adapter's prefix, if there is one, then the columns of the layout with the adapters' virtual tokens.
///
/// # Errors
/// [`Error::NoSuchLayer`]; [`Error::Adapter`] if the model shows none; errors of an adapter.
pub fn attention_weights(
    model: &dyn Model,
    adapters: &AdapterStack,
    layout: &Layout,
    layers: &[usize],
) -> Result<Vec<Tensor>> {
    let n = model.description().num_hidden_layers;
    if let Some(&layer) = layers.iter().find(|layer| **layer >= n) {
        return Err(Error::NoSuchLayer { layer, layers: n });
    }
    let _guard = tch::no_grad_guard();
    let layout = adapters.layout(layout.clone());
    let mut weights = SeenWeights { layers, seen: Vec::new() };
    let mut hooks = adapters.hooks(&layout, Mode::Eval)?;
    hooks.0.push(Box::new(&mut weights));
    let span = layout.whole();
    let forward = model.forward(&span, hooks.prefix_length());
    let embeddings = forward.embed(&layout.input_ids(model.device()));
    let highest = layers.iter().max().map_or(0, |layer| layer + 1);
    let _unread = forward.run(0..highest, embeddings, None, &mut hooks)?;
    drop(hooks);
    let of_layer = |layer: &usize| {
        let found = weights.seen.iter().find(|(own, _)| own == layer);
        found.map(|(_, weights)| weights.shallow_clone()).ok_or_else(|| Error::Adapter {
            reason: format!("layer {layer} has no attention that can be shown"),
        })
    };
    layers.iter().map(of_layer).collect()
}
