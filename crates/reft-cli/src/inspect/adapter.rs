use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use reft_methods::{
    AdapterFiles, AdapterSummary, HeadSummary, LAYERS, ReftAdapter, check_adapter, declaration,
};
use reft_models::{BaseModel, DecoderConfig, ModelDescription, Site, resolve_model};
use serde_json::{Value, json};

use crate::model::check_adapter_directory;
use crate::terminal::{Rows, bytes, grouped, percent};
use crate::train::directory::options_of_run;

/// Describes the adapter in a directory; `model`: its base model, if the caller names it.
///
/// # Errors
/// If the directory holds no valid adapter, or `model` does not fit its base model.
pub fn describe(directory: &Path, model: Option<&str>) -> Result<(Rows, Value)> {
    check_adapter_directory(directory)?;
    let summary = AdapterSummary::read(directory)?;
    let base = base_model(directory, &summary, model)?;
    if let Some(base) = &base {
        check_adapter(directory, base)?;
    }
    let total = base.as_ref().map(ModelDescription::parameters);
    let is_reft = declaration(&summary.method).is_ok_and(|m| m.files == AdapterFiles::Reft);
    let reft = if is_reft { Some(ReftAdapter::load_alone(directory)?) } else { None };
    let interventions = reft.as_ref().map(|reft| reft.interventions().len());
    let error = reft.as_ref().and_then(|reft| reft.interventions().orthonormality_error());
    let mut rows = match &reft {
        Some(reft) => reft_rows(reft),
        None => method_rows(&summary),
    };
    let mut add = |name: &str, value: String| rows.push((name.to_owned(), value));
    add("parameters", grouped(summary.parameters));
    if let Some(total) = total {
        let share = percent(summary.parameters, total);
        add("trainable", format!("{share} of {}", grouped(total)));
    }
    if let Some(head) = &summary.head {
        add("head", head_text(head));
    }
    if let Some(error) = error {
        add("orthonormality", format!("largest entry of |RᵀR − I| is {error:.1e}"));
    }
    for part in &summary.parts {
        add("part", format!("{}, {} parameters", part.method, grouped(part.parameters)));
    }
    if let Some(text) = &summary.text {
        add("template", text.template.clone());
    }
    add("base model", base_text(&summary));
    add("size", bytes(summary.bytes));
    let base_json = summary.base_model.as_ref().map(|base| json!(base));
    let json = json!({
        "type": "adapter",
        "method": summary.method,
        "options": summary.options,
        "config": reft.as_ref().map(ReftAdapter::config),
        "sites": sites_json(&summary),
        "interventions": interventions,
        "parameters": summary.parameters,
        "base_parameters": total,
        "trainable_share": total.map(|total| summary.parameters as f64 / total as f64),
        "orthonormality_error": error,
        "base_model": base_json.unwrap_or(json!({"name": summary.base_model_name})),
        "trained_text": summary.text,
        "head": summary.head,
        "parts": summary.parts.iter().map(part_json).collect::<Vec<_>>(),
        "bytes": summary.bytes,
    });
    Ok((rows, json))
}

/// `classes negative, positive; 1,154 parameters beside these`
fn head_text(head: &HeadSummary) -> String {
    let told = match (head.outputs, &head.classes[..]) {
        (1, _) => "a number or a reward".to_owned(),
        (n, []) => format!("{n} classes without names"),
        (_, names) => format!("classes {}", names.join(", ")),
    };
    format!("{told}; {} parameters beside these", grouped(head.parameters))
}

fn sites_json(summary: &AdapterSummary) -> Vec<Value> {
    let site = |site: &Site| json!({"layer": site.layer, "component": site.component.name()});
    summary.sites.iter().map(site).collect()
}

fn part_json(part: &AdapterSummary) -> Value {
    json!({
        "method": part.method,
        "options": part.options,
        "sites": sites_json(part),
        "parameters": part.parameters,
        "bytes": part.bytes,
    })
}

fn reft_rows(adapter: &ReftAdapter) -> Rows {
    let config = adapter.config();
    let d = config.base_model.hidden_size;
    let tied = if config.share_weights { "tied" } else { "untied" };
    let positions = match config.positions.is_all() {
        true => "all tokens of the prompt".to_owned(),
        false => format!("{}, {tied}, rule {}", config.positions, config.position_rule),
    };
    let layers: Vec<String> = config.layers.iter().map(usize::to_string).collect();
    let (method, act_fn, dropout) = (config.method, config.act_fn, config.dropout);
    let rows = [
        ("method", format!("{method} (act_fn {act_fn}, dropout {dropout})")),
        ("rank", format!("{} of hidden size {d}", config.low_rank_dimension)),
        ("layers", format!("{} ({})", layers.join(";"), config.component)),
        ("positions", positions),
        ("interventions", adapter.interventions().len().to_string()),
    ];
    rows.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

/// The method, its options and its sites. The option `layers` is left out, because the sites name the layers.
fn method_rows(summary: &AdapterSummary) -> Rows {
    let mut rows = vec![("method".to_owned(), summary.method.clone())];
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => {
            let texts = list.iter().map(|one| one.as_str().unwrap_or_default().to_owned());
            texts.collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    let shown = summary.options.given().filter(|(option, _)| *option != &LAYERS);
    let label = |name: &str| name.trim_start_matches("n_").replace('_', " ");
    rows.extend(shown.map(|(option, value)| (label(option.name), text(value))));
    if !summary.sites.is_empty() {
        rows.push(("sites".to_owned(), places(&summary.sites)));
    }
    rows
}

/// The base model: `asked`, else the first existing path of the run's option `model` and the adapter's own name for it.
fn base_model(
    directory: &Path,
    summary: &AdapterSummary,
    asked: Option<&str>,
) -> Result<Option<ModelDescription>> {
    if let Some(model) = asked {
        return Ok(Some(DecoderConfig::open(&resolve_model(model)?)?.describe()));
    }
    let of_run = options_of_run(directory).ok().flatten();
    let of_run = of_run.as_ref().and_then(|options| options.get("model")?.as_str());
    let mut names = of_run.into_iter().chain(summary.base_model_name.as_deref());
    let at_hand = names.find(|name| Path::new(name).exists());
    let model = at_hand.and_then(|path| Some(DecoderConfig::open(path.as_ref()).ok()?.describe()));
    let fits = |model: &ModelDescription| {
        summary.base_model.as_ref().is_none_or(|base| base.check(model).is_ok())
    };
    Ok(model.filter(fits)) // the model at that path may have been replaced
}

fn base_text(summary: &AdapterSummary) -> String {
    let name = summary.base_model_name.as_deref().unwrap_or("not named");
    let Some(BaseModel { model_type, num_hidden_layers, hidden_size, .. }) = &summary.base_model
    else {
        return name.to_owned();
    };
    let family = model_type.as_deref().unwrap_or("unknown family");
    let layers = num_hidden_layers.map_or(String::new(), |n| format!(", {n} layers"));
    format!("{name} ({family}, hidden size {hidden_size}{layers})")
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
