use std::collections::{BTreeMap, BTreeSet};

use reft_models::Site;

/// `q_proj, v_proj of layers 0-3`, components of the same layers together.
pub fn places(sites: &[Site]) -> String {
    let mut layers: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    let mut order = Vec::new();
    for site in sites {
        let name = site.component.name();
        if layers.entry(name).or_default().is_empty() {
            order.push(name);
        }
        layers.entry(name).or_default().insert(site.layer);
    }
    let mut groups: Vec<(&BTreeSet<usize>, Vec<&str>)> = Vec::new();
    for name in order {
        match groups.iter_mut().find(|(own, _)| *own == &layers[name]) {
            Some((_, names)) => names.push(name),
            None => groups.push((&layers[name], vec![name])),
        }
    }
    let text = |(layers, names): (&BTreeSet<usize>, Vec<&str>)| {
        let noun = if layers.len() == 1 { "layer" } else { "layers" };
        format!("{} of {noun} {}", names.join(", "), runs(layers))
    };
    groups.into_iter().map(text).collect::<Vec<_>>().join("; ")
}

/// `0-3, 7`
fn runs(layers: &BTreeSet<usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &layer in layers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => runs.push((layer, layer)),
        }
    }
    let text = |(first, last): &(usize, usize)| match last - first {
        0 => first.to_string(),
        _ => format!("{first}-{last}"),
    };
    runs.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use reft_models::Component;

    use super::*;

    #[test]
    fn components_of_the_same_layers_stand_together() {
        let site = |layer, component| Site { layer, component };
        let both =
            (0..4).flat_map(|layer| [Component::Query, Component::Value].map(|c| (layer, c)));
        let mut sites: Vec<Site> = both.map(|(layer, c)| site(layer, c)).collect();
        assert_eq!(places(&sites), "q_proj, v_proj of layers 0-3");
        sites.push(site(7, Component::Down));
        assert_eq!(places(&sites), "q_proj, v_proj of layers 0-3; down_proj of layer 7");
        let apart = [1, 2, 9].map(|layer| site(layer, Component::BlockOutput));
        assert_eq!(places(&apart), "block_output of layers 1-2, 9");
    }
}
