use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use reft_core::{
    Activation, Householder, InterventionConfig, InterventionSet, InterventionTensors, Method,
    OrthonormalMap, PositionRule, Positions,
};
use reft_models::{
    BaseModel, Error, Field, Fields, Result, TRANSFORMERS_FIELDS, read_json, says_nothing,
};
use serde::Deserialize;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::pyreft::saved_form::{BASE, CLASSES, RAW, SIZES};
use crate::{ReftAdapter, ReftConfig, load_torch_pickle};

/// Facts that a directory saved by pyreft lacks.
#[derive(Debug, Clone)]
pub struct PyreftImport {
    /// Prompt tokens that the adapter was trained to edit.
    pub positions: Positions,
    /// Whether one intervention per layer serves all positions.
    pub share_weights: bool,
    /// Activation of the learned source.
    pub act_fn: Activation,
    /// The base model, if it is at hand; without it only the hidden size is known.
    pub base_model: Option<BaseModel>,
}

/// The fields of `config.json` as pyreft 0.1 on pyvene writes it.
pub const PYREFT_FILE: Fields = Fields {
    file: "`config.json` of pyreft",
    groups: &[
        &[
            Field::applied(&["intervention_types", "intervention_dimensions", "sorted_keys"]),
            Field::applied(&["representations"]).with_note(
                "layer, component, unit, number of units and dimension; partitions and links are refused",
            ),
            Field::only(&["mode"], |mode| mode == "parallel", "\"parallel\""),
            Field::only(
                &["intervention_constant_sources"],
                |sources| sources.as_array().is_some_and(|all| all.iter().all(|own| own == true)),
                "true for each: ReFT's edits have no source run",
            ),
        ],
        TRANSFORMERS_FIELDS,
    ],
};

/// `config.json` as pyreft 0.1 on pyvene writes it.
#[derive(Debug, Deserialize)]
struct SavedConfig {
    intervention_types: Vec<String>,
    intervention_dimensions: Vec<i64>,
    representations: Vec<Vec<Value>>,
    sorted_keys: Vec<String>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

/// How many values of a representation are applied; the later ones are partitions and links.
const APPLIED_OF_REPRESENTATION: usize = 5;

/// Reads a directory that pyreft's `ReftModel.save` wrote. Pickles are read as data: no code in them is run.
///
/// Positions follow [`PositionRule::Pyreft`], so the adapter computes the same as in pyreft. If interventions are untied, pyreft lists the
/// interventions on the first tokens before the interventions on the last tokens.
///
/// # Errors
/// If a file is missing or broken, or the directory holds something else than ReFT interventions of one method at one component.
pub fn import_pyreft(dir: &Path, import: &PyreftImport) -> Result<ReftAdapter> {
    let path = dir.join("config.json");
    let refuse = |reason: String| Error::Format { path: path.clone(), reason };
    let config: SavedConfig = read_json(&path)?;
    PYREFT_FILE.check(&config.other).map_err(refuse)?;
    for representation in &config.representations {
        let mut further = representation.iter().skip(APPLIED_OF_REPRESENTATION);
        if let Some(value) = further.find(|value| !says_nothing(value)) {
            let advice = "partitions and links between interventions are not applied here";
            return Err(refuse(format!("a representation holds {value}, expected null: {advice}")));
        }
    }
    let method = method_of(&config.intervention_types).map_err(refuse)?;
    let Some(&hidden_size) = config.intervention_dimensions.first() else {
        return Err(refuse("it names no intervention, expected at least one".into()));
    };
    if config.representations.len() != config.sorted_keys.len() {
        let (found, expected) = (config.sorted_keys.len(), config.representations.len());
        return Err(refuse(format!("it has {found} keys for {expected} representations")));
    }
    let mut saved = Vec::new();
    for key in &config.sorted_keys {
        let place =
            parse_key(key).ok_or_else(|| refuse(format!("key {key:?} is not one of pyreft's")))?;
        saved.push((place, load_torch_pickle(&dir.join(format!("intkey_{key}.bin")))?));
    }
    saved.sort_by(|(a, _), (b, _)| a.cmp(b));

    let layers: BTreeSet<usize> = saved.iter().map(|((_, layer, _), _)| *layer).collect();
    let layers = Vec::from_iter(layers);
    let groups = import.positions.groups(import.share_weights).len();
    if saved.len() != layers.len() * groups {
        let (found, n) = (saved.len(), layers.len());
        let advice = if import.share_weights { "leave out" } else { "give" };
        return Err(refuse(format!(
            "it holds {found} interventions on {n} layers, positions {} need {groups} on each; {advice} --share-weights or change the positions",
            import.positions
        )));
    }
    let Some(((_, _, component), first)) = saved.first() else {
        return Err(refuse("it has no keys, expected at least one".into()));
    };
    if let Some(((_, _, other), _)) = saved.iter().find(|((_, _, other), _)| other != component) {
        let reason = format!("components {component} and {other} are mixed, expected one");
        return Err(refuse(reason));
    }

    let intervention = InterventionConfig {
        act_fn: import.act_fn,
        add_bias: first.contains_key("proj_layer.bias"),
        ..InterventionConfig::new(method, rank_of(first).map_err(refuse)?)
    };
    let base_model = import.base_model.clone().unwrap_or(BaseModel {
        name: None,
        model_type: None,
        hidden_size,
        num_hidden_layers: None,
        vocab_size: None,
    });
    let config = ReftConfig {
        component: component.parse()?,
        position_rule: PositionRule::Pyreft,
        share_weights: import.share_weights,
        ..ReftConfig::new(&intervention, layers, import.positions, base_model)
    };
    config.check()?;
    let tensors: Vec<InterventionTensors> =
        saved.into_iter().map(|(_, own)| rename(method, own)).collect::<Result<_>>()?;
    let interventions =
        InterventionSet::from_tensors(intervention, hidden_size, &tensors, Device::Cpu)?;
    ReftAdapter::from_interventions(config, interventions)
}

fn method_of(types: &[String]) -> std::result::Result<Method, String> {
    let first = types.first().ok_or("it names no intervention, expected at least one")?;
    if let Some(other) = types.iter().find(|t| *t != first) {
        return Err(format!("interventions of types {first} and {other} are mixed, expected one"));
    }
    let class = first.trim_start_matches("<class '").trim_end_matches("'>");
    let name = class.rsplit('.').next().unwrap_or(class);
    CLASSES.iter().find(|(class, _)| *class == name).map(|(_, method)| *method).ok_or_else(|| {
        let known: Vec<_> = CLASSES.iter().map(|(class, _)| *class).collect();
        format!("intervention type {first} is unknown, expected one of {}", known.join(", "))
    })
}

/// Number, layer and component of a key: `layer_1_comp_block_output_unit_pos_nunit_1#0` is number 0 of layer 1 at `block_output`. `None` for
/// a path, since a key is part of a file's name.
fn parse_key(key: &str) -> Option<(usize, usize, String)> {
    if Path::new(key).file_name() != Some(key.as_ref()) {
        return None;
    }
    let (layer, rest) = key.strip_prefix("layer_")?.split_once("_comp_")?;
    let (component, rest) = rest.split_once("_unit_")?;
    let (_, nth) = rest.rsplit_once('#')?;
    Some((nth.parse().ok()?, layer.parse().ok()?, component.to_owned()))
}

/// The subspace's dimension: the only dimension of a bias or constant source.
fn rank_of(tensors: &BTreeMap<String, Tensor>) -> std::result::Result<i64, String> {
    ["bias", "learned_source.bias", "learned_source"]
        .iter()
        .find_map(|name| tensors.get(*name))
        .and_then(|b| b.size().first().copied())
        .ok_or_else(|| {
            let names: Vec<_> = tensors.keys().map(String::as_str).collect();
            format!("the first intervention holds {}, expected a learned source", names.join(", "))
        })
}

/// pyreft's tensors of one intervention under our names.
fn rename(method: Method, mut saved: BTreeMap<String, Tensor>) -> Result<InterventionTensors> {
    for constant in SIZES {
        saved.remove(constant);
    }
    let mut renamed = InterventionTensors::new();
    if let (Some(raw), Some(base)) = (saved.remove(RAW), saved.remove(BASE)) {
        renamed.insert("rotation".into(), effective_rotation(method, &raw, &base)?);
    }
    for (name, tensor) in saved {
        let name = match name.as_str() {
            "rotate_layer" => "rotation",
            "weight" => "learned_source.weight",
            "bias" | "learned_source" => "learned_source.bias",
            other => other,
        };
        renamed.insert(name.to_owned(), tensor.to_kind(Kind::Float));
    }
    Ok(renamed)
}

/// `Rᵀ` of torch's orthogonal parametrisation: column `j` of `base · H(raw)` times `−trunc(raw_jj)`; square matrices have another map.
///
/// The diagonal is −1 at the start. Weight decay takes it to −0.99…, and its `trunc` to 0: the saved rotation is then 0, and
/// [`InterventionSet::from_tensors`] refuses it.
fn effective_rotation(method: Method, raw: &Tensor, base: &Tensor) -> Result<Tensor> {
    let shape_error = |name: &str, expected: Vec<i64>, got: &Tensor| {
        let name = format!("{method} {name}");
        Error::Core(reft_core::Error::Shape { name, expected, got: got.size() })
    };
    let Ok((d, r)) = raw.size2() else {
        return Err(shape_error("rotate_layer", vec![-1, -1], raw));
    };
    if base.size() != [d, d] || r > d {
        return Err(shape_error("rotate_layer base", vec![d, d], base));
    }
    if r == d {
        // torch maps square matrices differently: base · exp(A), A = tril(raw) − tril(raw)ᵀ
        let lower = raw.to_kind(Kind::Double).tril(0);
        let rotation = base.to_kind(Kind::Double).matmul(&(&lower - lower.tr()).matrix_exp());
        return Ok(rotation.to_kind(Kind::Float));
    }
    let map = Householder::on_base(&base.unsqueeze(0).to_kind(Kind::Float), r);
    tch::no_grad(|| {
        map.raw().shallow_clone().copy_(&raw.unsqueeze(0));
        let signs = -raw.diagonal(0, 0, 1).to_kind(Kind::Float).trunc();
        Ok(map.columns().squeeze_dim(0) * signs)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_names_and_no_paths() {
        let key = "layer_3_comp_block_output_unit_pos_nunit_1#2";
        assert_eq!(parse_key(key), Some((2, 3, "block_output".to_owned())));
        for path in ["/../../x", "/x"] {
            let key = format!("layer_3_comp_block_output{path}_unit_pos_nunit_1#2");
            assert_eq!(parse_key(&key), None);
        }
        assert_eq!(parse_key("layer_3_comp_block_output_unit_/../../x_pos#2"), None);
    }
}
