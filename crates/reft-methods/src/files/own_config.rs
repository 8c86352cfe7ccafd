//! `baseline_config.json`: configurations of the methods that PEFT does not have.

use std::path::Path;

use reft_models::{BaseModel, Component, Error, ModelDescription, Result, Site, read_json};
use serde_json::Value;

use crate::declaration::AdapterFiles;

/// The version of the format that is written and read.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// `method` of an adapter directory.
pub(crate) fn method(dir: &Path) -> Result<String> {
    let path = dir.join(AdapterFiles::Own.names()[1]);
    let config: Value = read_json(&path)?;
    config["method"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::Adapter { reason: format!("{} names no method", path.display()) })
}

/// Where an edit stands: components of layers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Branches<'a> {
    /// Layers, 0-based, each once, in ascending order.
    pub(crate) layers: &'a [usize],
    /// Components, each once.
    pub(crate) components: &'a [Component],
}

impl<'a> Branches<'a> {
    /// Every one of the sites, layer by layer.
    pub(crate) fn sites(self) -> impl Iterator<Item = Site> + 'a {
        let of_layer = move |&layer: &usize| {
            self.components.iter().map(move |&component| Site { layer, component })
        };
        self.layers.iter().flat_map(of_layer)
    }

    /// Components by name.
    pub(crate) fn component_names(self) -> Vec<&'static str> {
        self.components.iter().map(|component| component.name()).collect()
    }

    /// Checks them, and the rest of what every such configuration holds.
    pub(crate) fn check(
        self,
        format_version: u32,
        accepted: &[Component],
        base_model: &BaseModel,
        model: &ModelDescription,
    ) -> Result<()> {
        let Self { layers, components } = self;
        let refuse = |reason: String| Err(Error::Adapter { reason });
        if format_version != FORMAT_VERSION {
            return refuse(format!(
                "format_version is {format_version}, this program reads {FORMAT_VERSION}"
            ));
        }
        base_model.check(model)?;
        let n = model.num_hidden_layers;
        if let Some(layer) = layers.iter().find(|layer| **layer >= n) {
            return refuse(format!(
                "layer {layer} is out of range, the model has {n} layers, counted from 0"
            ));
        }
        if layers.is_empty() || layers.windows(2).any(|pair| pair[0] >= pair[1]) {
            return refuse(format!(
                "layers are {layers:?}; name each layer once, in ascending order, and at least one"
            ));
        }
        let names = || accepted.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if let Some(component) = components.iter().find(|component| !accepted.contains(component)) {
            return refuse(format!("component is {component}, the method takes {}", names()));
        }
        if components.is_empty() || components.windows(2).any(|pair| pair[0] >= pair[1]) {
            return refuse(format!("name each component once, in this order: {}", names()));
        }
        Ok(())
    }
}

/// Components by name, in a JSON list.
pub(crate) mod component_names {
    use reft_models::Component;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        components: &[Component],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(components.iter().map(|component| component.name()))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Component>, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        names.iter().map(|name| name.parse().map_err(serde::de::Error::custom)).collect()
    }
}

/// `layers.3.mlp_output.scale`
pub(crate) fn tensor_name(site: Site, tensor: &str) -> String {
    format!("layers.{}.{}.{tensor}", site.layer, site.component)
}
