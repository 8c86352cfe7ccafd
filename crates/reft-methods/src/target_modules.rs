use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use fancy_regex::Regex;
use reft_models::{Component, Error, ModelDescription, Projection, Result, Site, Weights};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{MethodOptions, TARGET_MODULES};

/// Which projections a method works on, as PEFT's `target_modules` says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a list of module names, or a pattern")]
pub enum TargetModules {
    /// Module names or their endings: `q_proj`, `mlp.down_proj`, `model.layers.3.self_attn.q_proj`; of BERT `query`, `intermediate.dense`.
    Names(Vec<String>),
    /// A regular expression that must match a whole module name, or `all-linear`.
    Pattern(String),
}

impl TargetModules {
    /// The projections among these that a model has, in every layer.
    pub fn of(components: &[Component], model: &ModelDescription) -> Self {
        let names = components.iter().filter_map(|own| model.projection_name(*own));
        Self::Names(names.collect())
    }

    /// Every projection of a model.
    pub fn all(model: &ModelDescription) -> Self {
        Self::Names(model.projection_names())
    }

    /// Whether it matches a module, by PEFT's rules.
    ///
    /// # Errors
    /// [`Error::Adapter`] if the pattern is no regular expression.
    pub fn means(&self, module: &str) -> Result<bool> {
        Ok(match self {
            Self::Names(names) => names.iter().any(|name| is_or_ends_with(module, name)),
            Self::Pattern(pattern) if pattern == "all-linear" => true,
            Self::Pattern(pattern) => matches_whole(pattern, module)?,
        })
    }

    /// Whether it means a projection, by its name in the model or in one with the head of a task.
    fn means_module(&self, projection: &Projection, model: &ModelDescription) -> Result<bool> {
        let module = &projection.module;
        let in_whole = model.prefix.map(|prefix| format!("{prefix}.{module}"));
        let means_whole = in_whole.map(|module| self.means(&module)).transpose()?;
        Ok(self.means(module)? || means_whole.unwrap_or(false))
    }

    /// Whether it selects modules: a list that is not empty, or a valid pattern.
    pub(crate) fn are_told(&self) -> bool {
        match self {
            Self::Names(names) => !names.is_empty(),
            Self::Pattern(pattern) => matches_whole(pattern, "").is_ok(),
        }
    }

    /// The modules of the tensors in an adapter's file: `base_model.model.model.layers.0.mlp.up_proj.lora_A.weight`.
    pub(crate) fn of_tensors(path: &Path) -> Result<Self> {
        let file = Weights::open_file(path)?;
        let module = |name: &str| {
            let parts: Vec<&str> = name.strip_prefix("base_model.model.")?.split('.').collect();
            let is_own = |part: &&str| OWN_PARTS.iter().any(|own| part.starts_with(own));
            let end = parts.iter().position(is_own)?;
            Some(parts[..end].join("."))
        };
        let modules: BTreeSet<String> = file.names().filter_map(module).collect();
        Ok(Self::Names(modules.into_iter().collect()))
    }

    /// The modules that options give; each name must match a projection.
    pub(crate) fn given(
        options: &MethodOptions,
        model: &ModelDescription,
    ) -> crate::Result<Option<Self>> {
        let given: Option<Self> = options.get(&TARGET_MODULES);
        if let Some(Self::Names(names)) = &given
            && let Some(name) = names.iter().find(|name| means_nothing(name, model))
        {
            let found = format!("{name:?}, which is no projection of the model");
            return Err(TARGET_MODULES.refuse(found, &model.projection_names().join(", ")));
        }
        Ok(given)
    }

    /// The matching projections, of all layers or of `layers`, without those in `excluded`. Names without a match are logged.
    ///
    /// # Errors
    /// [`Error::Adapter`] if no projection of the model matches, a pattern is invalid, a layer does not exist, or everything is excluded.
    pub(crate) fn select(
        &self,
        model: &ModelDescription,
        layers: Option<&[usize]>,
        excluded: Option<&Self>,
    ) -> Result<Vec<Projection>> {
        let all = model.projections();
        let n = model.num_hidden_layers;
        if let Some(layer) = layers.into_iter().flatten().find(|layer| **layer >= n) {
            let reason = format!(
                "layers_to_transform names layer {layer}, the model has {n} layers, counted from 0"
            );
            return Err(Error::Adapter { reason });
        }
        let in_layers = |p: &Projection| layers.is_none_or(|layers| layers.contains(&p.site.layer));
        let accepted = model.projection_names().join(", ");
        let mut selected = Vec::new();
        for projection in all.into_iter().filter(in_layers) {
            if self.means_module(&projection, model)? {
                selected.push(projection);
            }
        }
        if selected.is_empty() {
            let reason = format!("target_modules {self} means no projection; use {accepted}");
            return Err(Error::Adapter { reason });
        }
        if let Self::Names(names) = self {
            for name in names.iter().filter(|name| means_nothing(name, model)) {
                log::warn!("target_modules names {name}, which is no projection of the model");
            }
        }
        let Some(excluded) = excluded.filter(|excluded| **excluded != Self::default()) else {
            return Ok(selected);
        };
        let mut kept = Vec::with_capacity(selected.len());
        for projection in &selected {
            if !excluded.means_module(projection, model)? {
                kept.push(projection.clone());
            }
        }
        if kept.is_empty() {
            let reason = format!("exclude_modules {excluded} means every one of the modules");
            return Err(Error::Adapter { reason });
        }
        if kept.len() == selected.len() {
            log::warn!("exclude_modules {excluded} means none of the modules");
        }
        Ok(kept)
    }
}

impl From<&str> for TargetModules {
    /// Names separated by commas or semicolons; any other text, as `all-linear`, is a pattern.
    fn from(text: &str) -> Self {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_. ,;".contains(c);
        if !text.chars().all(is_name) {
            return Self::Pattern(text.to_owned());
        }
        Self::Names(text.split([',', ';']).map(|name| name.trim().to_owned()).collect())
    }
}

/// Whether two projections have the same input: query, key and value; gate and up.
pub(crate) fn share_an_input(a: Site, b: Site) -> bool {
    use Component::{Gate, Key, Query, Up, Value};
    let groups: [&[Component]; 2] = [&[Query, Key, Value], &[Gate, Up]];
    a.layer == b.layer
        && groups.iter().any(|group| group.contains(&a.component) && group.contains(&b.component))
}

/// The beginnings of an adapter's own part of a tensor name, which follows the module's name.
const OWN_PARTS: [&str; 3] = ["lora_", "ia3_", "road_"];

/// Whether a name matches no projection of the model.
fn means_nothing(name: &str, model: &ModelDescription) -> bool {
    let name =
        model.prefix.and_then(|own| name.strip_prefix(own)?.strip_prefix('.')).unwrap_or(name);
    !model.projections().iter().any(|p| is_or_ends_with(&p.module, name))
}

/// Whether a module's name is `name`, or ends with it.
fn is_or_ends_with(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether a regular expression, in Python's notation, matches a whole name.
pub(crate) fn matches_whole(pattern: &str, name: &str) -> Result<bool> {
    let matched = Regex::new(&format!("^(?:{pattern})$")).and_then(|regex| regex.is_match(name));
    matched.map_err(|source| Error::Adapter {
        reason: format!("module pattern {pattern:?} is not a regular expression: {source}"),
    })
}

/// A field that may be null.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    field: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(field)?.unwrap_or_default())
}

impl Default for TargetModules {
    fn default() -> Self {
        Self::Names(Vec::new())
    }
}

impl fmt::Display for TargetModules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Names(names) => f.write_str(&names.join(", ")),
            Self::Pattern(pattern) => f.write_str(pattern),
        }
    }
}
