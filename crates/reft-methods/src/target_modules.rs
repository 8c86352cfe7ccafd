use reft_models::{Component, Error, ModelDescription, Projection, Result, Site};
use regex::Regex;
use serde::{Deserialize, Serialize};

/// Which projections a method works on, as PEFT's `target_modules` says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// Module names or their endings: `q_proj`, `mlp.down_proj`, `model.layers.3.self_attn.q_proj`.
    Names(Vec<String>),
    /// A regular expression that must match a whole module name, or `all-linear`.
    Pattern(String),
}

impl TargetModules {
    /// These projections in every layer.
    pub fn of(components: &[Component]) -> Self {
        Self::Names(components.iter().map(ToString::to_string).collect())
    }

    /// Every projection of a model.
    pub fn all(model: &ModelDescription) -> Self {
        Self::Names(model.projection_names().into_iter().map(str::to_owned).collect())
    }

    /// The projections meant, of all layers or of `layers`.
    ///
    /// # Errors
    /// [`Error::Adapter`] if a name means none of the model's projections, the pattern is none, or a layer does not exist.
    pub fn select(
        &self,
        model: &ModelDescription,
        layers: Option<&[usize]>,
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
        let selected: Vec<Projection> = match self {
            Self::Names(names) => {
                let means = |name: &str, p: &Projection| {
                    p.module == name || p.module.ends_with(&format!(".{name}"))
                };
                if let Some(name) = names.iter().find(|name| !all.iter().any(|p| means(name, p))) {
                    let reason = format!(
                        "target_modules names {name:?}, which is no projection of a decoder block; use {accepted}"
                    );
                    return Err(Error::Adapter { reason });
                }
                all.into_iter().filter(|p| names.iter().any(|name| means(name, p))).collect()
            }
            Self::Pattern(pattern) if pattern == "all-linear" => all,
            Self::Pattern(pattern) => {
                let whole = whole_match(pattern)?;
                all.into_iter().filter(|p| whole.is_match(&p.module)).collect()
            }
        };
        let selected: Vec<Projection> = selected.into_iter().filter(in_layers).collect();
        if selected.is_empty() {
            let reason = format!("target_modules {self:?} means no projection; use {accepted}");
            return Err(Error::Adapter { reason });
        }
        Ok(selected)
    }
}

impl From<&str> for TargetModules {
    /// Names with commas or semicolons between them; `all-linear`, or anything that is no name, is a pattern.
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

/// A regular expression that matches whole names only.
pub(crate) fn whole_match(pattern: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|source| Error::Adapter {
        reason: format!("module pattern {pattern:?} is not a regular expression: {source}"),
    })
}
