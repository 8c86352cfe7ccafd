use crate::transformer::config::config_file::{ConfigFile, Resolved};

/// The layers of a family with sliding windows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Window {
    /// No layer, even if the file gives a size.
    Never,
    /// At every layer, if the file gives a size.
    Everywhere,
    /// The layers that `layer_types` calls sliding; without `layer_types`, the layers for which the function is true.
    ByLayer(fn(&ConfigFile, usize) -> bool),
    /// The same, only if `use_sliding_window` is set.
    ByLayerIfUsed(fn(&ConfigFile, usize) -> bool),
    /// The same in an encoder: half of `local_attention` on either side of a token.
    OnBothSides(fn(&ConfigFile, usize) -> bool),
}

/// The two kinds of layers that `layer_types` names.
pub(crate) const LAYER_TYPES: [&str; 2] = ["full_attention", "sliding_attention"];

impl ConfigFile {
    /// Whether a layer has a sliding window, if its family has such layers; `usual`: without `layer_types`.
    pub(crate) fn slides(&self, layer: usize, usual: fn(&Self, usize) -> bool) -> bool {
        match &self.layer_types {
            Some(types) => types[layer] == LAYER_TYPES[1],
            None => usual(self, layer),
        }
    }

    /// How far each layer sees.
    pub(crate) fn windows(&self, family: Window) -> Resolved<Vec<Option<i64>>> {
        let layers = self.num_hidden_layers;
        if let Some(types) = &self.layer_types {
            if types.len() != layers {
                let found = types.len();
                return Err(format!("layer_types names {found} layers, expected {layers}"));
            }
            if let Some(other) = types.iter().find(|name| !LAYER_TYPES.contains(&name.as_str())) {
                let expected = LAYER_TYPES.join(" or ");
                return Err(format!("layer_types names {other:?}, expected {expected}"));
            }
        }
        let window = match family {
            Window::Never | Window::OnBothSides(_) => None,
            Window::ByLayerIfUsed(_) if self.use_sliding_window != Some(true) => None,
            Window::Everywhere | Window::ByLayer(_) | Window::ByLayerIfUsed(_) => {
                self.sliding_window
            }
        };
        let (field, size) = match family {
            Window::OnBothSides(_) => ("local_attention", self.local_attention),
            _ => ("sliding_window", window),
        };
        if let Some(size) = size.filter(|size| *size < 1) {
            return Err(format!("{field} is {size}, expected a positive size or null"));
        }
        let window = match family {
            Window::OnBothSides(_) => size.map(|size| size / 2 + 1), // half of it behind, and the token itself
            _ => size,
        };
        let slides = |layer: usize| match family {
            Window::ByLayer(usual) | Window::ByLayerIfUsed(usual) | Window::OnBothSides(usual) => {
                self.slides(layer, usual)
            }
            Window::Never | Window::Everywhere => true,
        };
        if let Window::ByLayer(usual) | Window::OnBothSides(usual) = family
            && window.is_none()
            && let Some(layer) = (0..layers).find(|&layer| self.slides(layer, usual))
        {
            return Err(format!(
                "{field} is missing, and layer {layer} is one with a sliding window; expected a positive size"
            ));
        }
        let of_layer = |layer| window.filter(|_| slides(layer));
        let windows: Vec<Option<i64>> = (0..layers).map(of_layer).collect();
        // the windows must agree with the file's `layer_types`
        for (layer, name) in self.layer_types.iter().flatten().enumerate() {
            if (name == LAYER_TYPES[1]) != windows[layer].is_some() {
                return Err(format!(
                    "layer_types says {name} of layer {layer}, and sliding_window and use_sliding_window of {} say otherwise",
                    self.model_type
                ));
            }
        }
        Ok(windows)
    }
}
