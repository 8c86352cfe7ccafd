//! `reft inspect` of an adapter, of whatever method.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use reft_bench::{AdapterKind, AdapterSummary, check_adapter};
use reft_models::{BaseModel, DecoderConfig, ReftAdapter, Site, resolve_model};
use serde_json::{Value, json};

use crate::inspect::Report;
use crate::layers::Layers;
use crate::model::check_adapter_directory;
use crate::output::{bytes, grouped, percent};

/// What the adapter in a directory is; `model`: its base model, if the caller names it.
///
/// # Errors
/// If it is none, or broken, or the model is another one.
pub fn report(directory: &Path, model: Option<&str>) -> Result<Report> {
    check_adapter_directory(directory)?;
    let summary = AdapterSummary::read(directory)?;
    let base = base_config(&summary, model)?;
    if let Some(base) = &base {
        check_adapter(directory, base)?;
    }
    let reft = match summary.kind {
        AdapterKind::Reft => Some(ReftAdapter::load_alone(directory)?),
        _ => None,
    };
    let interventions = reft.as_ref().map(|reft| reft.interventions().len());
    let error = reft.as_ref().and_then(|reft| reft.interventions().orthonormality_error());
    let total = base.as_ref().map(DecoderConfig::parameters);

    let mut rows = match &reft {
        Some(reft) => reft_rows(reft),
        None => baseline_rows(&summary)?,
    };
    rows.push(("parameters", grouped(summary.parameters)));
    if let Some(total) = total {
        let share = percent(summary.parameters, total);
        rows.push(("trainable", format!("{share} of {}", grouped(total))));
    }
    if let Some(error) = error {
        rows.push(("orthonormality", format!("largest entry of |RᵀR − I| is {error:.1e}")));
    }
    for part in &summary.parts {
        rows.push(("part", format!("{}, {} parameters", part.method, grouped(part.parameters))));
    }
    rows.push(("base model", describe(&summary)));
    rows.push(("size", bytes(summary.bytes)));
    let json = json!({
        "type": "adapter",
        "method": summary.method,
        "options": summary.options,
        "config": reft.as_ref().map(ReftAdapter::config),
        "sites": summary.sites.iter().map(site_json).collect::<Vec<_>>(),
        "interventions": interventions,
        "parameters": summary.parameters,
        "base_parameters": total,
        "trainable_share": total.map(|total| summary.parameters as f64 / total as f64),
        "orthonormality_error": error,
        "base_model": base_json(&summary),
        "parts": summary.parts.iter().map(part_json).collect::<Vec<_>>(),
        "bytes": summary.bytes,
    });
    Ok(Report { rows, json })
}

fn site_json(site: &Site) -> Value {
    json!({"layer": site.layer, "component": site.component.name()})
}

fn part_json(part: &AdapterSummary) -> Value {
    json!({
        "method": part.method,
        "options": part.options,
        "sites": part.sites.iter().map(site_json).collect::<Vec<_>>(),
        "parameters": part.parameters,
        "bytes": part.bytes,
    })
}

fn base_json(summary: &AdapterSummary) -> Value {
    match &summary.base_model {
        Some(base) => json!(base),
        None => json!({"name": summary.base_model_name}),
    }
}

fn reft_rows(adapter: &ReftAdapter) -> Vec<(&'static str, String)> {
    let config = adapter.config();
    let d = config.base_model.hidden_size;
    let tied = if config.share_weights { "tied" } else { "untied" };
    let layers = Layers::Some(config.layers.clone());
    let (method, act_fn, dropout) = (config.method, config.act_fn, config.dropout);
    vec![
        ("method", format!("{method} (act_fn {act_fn}, dropout {dropout})")),
        ("rank", format!("{} of hidden size {d}", config.low_rank_dimension)),
        ("layers", format!("{layers} ({})", config.component)),
        ("positions", format!("{}, {tied}, rule {}", config.positions, config.position_rule)),
        ("interventions", adapter.interventions().len().to_string()),
    ]
}

/// The method, its options but those that the sites say better, and the sites.
fn baseline_rows(summary: &AdapterSummary) -> Result<Vec<(&'static str, String)>> {
    const SHOWN: [(&str, &str); 10] = [
        ("rank", "rank"),
        ("alpha", "alpha"),
        ("act_fn", "activation"),
        ("dropout", "dropout"),
        ("target_modules", "modules"),
        ("feedforward_modules", "inputs of"),
        ("n_virtual_tokens", "virtual tokens"),
        ("encoder_hidden_size", "encoder"),
        ("bottleneck_size", "inner size"),
        ("components", "components"),
    ];
    let mut rows = vec![("method", summary.method.clone())];
    let options = serde_json::to_value(&summary.options)?;
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            let texts = list.iter().map(|one| one.as_str().unwrap_or_default().to_owned());
            texts.collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    rows.extend(SHOWN.iter().filter_map(|(name, label)| Some((*label, text(options.get(name)?)))));
    if !summary.sites.is_empty() {
        rows.push(("sites", places(&summary.sites)));
    }
    Ok(rows)
}

/// `q_proj, v_proj of layers 0-3`, components of the same layers together.
fn places(sites: &[Site]) -> String {
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

/// The base model's configuration, if it is asked for or at hand.
fn base_config(summary: &AdapterSummary, asked: Option<&str>) -> Result<Option<DecoderConfig>> {
    if let Some(model) = asked {
        return Ok(Some(DecoderConfig::open(&resolve_model(model)?)?));
    }
    let at_hand = summary.base_model_name.as_deref().map(Path::new).filter(|path| path.exists());
    let config = at_hand.and_then(|path| DecoderConfig::open(path).ok());
    let fits = |config: &DecoderConfig| {
        summary.base_model.as_ref().is_none_or(|base| base.check(config).is_ok())
    };
    Ok(config.filter(fits)) // else another model stands there by now
}

fn describe(summary: &AdapterSummary) -> String {
    let name = summary.base_model_name.as_deref().unwrap_or("not named");
    let Some(BaseModel { model_type, num_hidden_layers, hidden_size, .. }) = &summary.base_model
    else {
        return name.to_owned();
    };
    let family = model_type.as_deref().unwrap_or("unknown family");
    let layers = num_hidden_layers.map_or(String::new(), |n| format!(", {n} layers"));
    format!("{name} ({family}, hidden size {hidden_size}{layers})")
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
