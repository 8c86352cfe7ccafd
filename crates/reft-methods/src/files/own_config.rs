//! `baseline_config.json`: configurations of the methods that PEFT does not have, and checks that ReFT's shares.

use reft_models::{BaseModel, Component, Error, ModelDescription, Result, Site};

/// The version of the format that is written and read.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// The sites of an edit: components of layers.
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

    /// Checks them, and the other fields that all such configurations have.
    pub(crate) fn check(
        self,
        format_version: u32,
        accepted: &[Component],
        base_model: &BaseModel,
        model: &ModelDescription,
    ) -> Result<()> {
        let Self { layers, components } = self;
        let refuse = |reason: String| Err(Error::Adapter { reason });
        check_version(format_version)?;
        base_model.check(model)?;
        check_layers(layers, model.num_hidden_layers)?;
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

/// Refuses an unknown format version.
pub(crate) fn check_version(found: u32) -> Result<()> {
    if found == FORMAT_VERSION {
        return Ok(());
    }
    let reason = format!("format_version is {found}, this program reads {FORMAT_VERSION}");
    Err(Error::Adapter { reason })
}

/// Checks that layers are some of `n`, each named once and in ascending order.
pub(crate) fn check_layers(layers: &[usize], n: usize) -> Result<()> {
    let reason = if let Some(layer) = layers.iter().find(|layer| **layer >= n) {
        format!("layer {layer} is out of range, the model has {n} layers, counted from 0")
    } else if layers.is_empty() || layers.windows(2).any(|pair| pair[0] >= pair[1]) {
        format!("layers are {layers:?}; name each layer once, in ascending order, and at least one")
    } else {
        return Ok(());
    };
    Err(Error::Adapter { reason })
}

/// `layers.3.mlp_output.scale`
pub(crate) fn tensor_name(site: Site, tensor: &str) -> String {
    format!("layers.{}.{}.{tensor}", site.layer, site.component)
}
