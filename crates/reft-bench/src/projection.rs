use std::collections::HashMap;

use reft_models::{Component, DecoderConfig, Site};

/// A linear projection of a decoder: where it is, its name in checkpoints, and its sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// Where it is.
    pub site: Site,
    /// Its module in checkpoints: `model.layers.3.self_attn.q_proj`.
    pub module: String,
    /// Size of its input.
    pub in_features: i64,
    /// Size of its output.
    pub out_features: i64,
}

impl Projection {
    /// The seven projections of every layer, in the order that the forward runs through them.
    pub fn all(config: &DecoderConfig) -> Vec<Self> {
        let shapes: HashMap<String, Vec<i64>> = config.tensor_shapes().into_iter().collect();
        let sites = (0..config.num_hidden_layers).flat_map(|layer| {
            Component::PROJECTIONS.into_iter().map(move |component| Site { layer, component })
        });
        let projection = |site: Site| {
            let block = match site.component {
                Component::Gate | Component::Up | Component::Down => "mlp",
                _ => "self_attn",
            };
            let module = format!("model.layers.{}.{block}.{}", site.layer, site.component);
            match shapes.get(&format!("{module}.weight")).map(Vec::as_slice) {
                Some(&[out_features, in_features]) => {
                    Some(Self { site, module, in_features, out_features })
                }
                _ => None,
            }
        };
        sites.filter_map(projection).collect()
    }
}
