//! RoPE in `config.json`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::transformer::config::config_file::{ConfigFile, Resolved};
use crate::transformer::config::windows::LAYER_TYPES;
use crate::{RopeOptions, RopeScaling, says_nothing};

/// `rope_scaling` or `rope_parameters`.
pub(crate) type RopeFields = BTreeMap<String, Value>;

/// A family's rules of RoPE.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeRules {
    /// Default of the base θ.
    pub(crate) theta: f64,
    /// Fields that a family has beside the fields of the type.
    pub(crate) own: &'static [&'static str],
    /// Whether only a share of each head may be rotated.
    pub(crate) is_partial: bool,
    /// Older names of types, each with its present name.
    pub(crate) renamed: &'static [(&'static str, &'static str)],
    /// Default of the original context; `None`: `max_position_embeddings`.
    pub(crate) original: Option<f64>,
}

/// The rules of most families.
pub(crate) const USUAL_ROPE: RopeRules =
    RopeRules { theta: 10_000.0, own: &[], is_partial: false, renamed: &[], original: None };

/// The fields of `rope_scaling`, or else of `rope_parameters`. They override fields of the same names outside.
pub(crate) fn rope_fields(file: &ConfigFile) -> RopeFields {
    let given = file.rope_scaling.as_ref().filter(|rope| !rope.is_empty());
    given.or(file.rope_parameters.as_ref()).cloned().unwrap_or_default()
}

/// The one RoPE of a model.
pub(crate) fn one_rope(
    file: &ConfigFile,
    head_dim: i64,
    rules: &RopeRules,
) -> Resolved<Vec<RopeOptions>> {
    let fields = rope_fields(file);
    let theta = file.rope_theta.unwrap_or(rules.theta);
    Ok(vec![RopeReader { file, fields: &fields, head_dim, rules, theta }.read()?])
}

/// The RoPEs of layers with full attention and with a sliding window, for files with one for each; `thetas`: the default base of each.
pub(crate) fn rope_by_layer_type(
    file: &ConfigFile,
    head_dim: i64,
    thetas: [f64; 2],
) -> Resolved<Vec<RopeOptions>> {
    let mut fields = [RopeFields::new(), RopeFields::new()];
    for (name, value) in file.rope_parameters.iter().flatten() {
        match (LAYER_TYPES.iter().position(|own| own == name), value.as_object()) {
            (Some(i), Some(own)) => fields[i].extend(own.clone()),
            _ if says_nothing(value) => {}
            _ => {
                let expected = LAYER_TYPES.join(" and ");
                return Err(format!(
                    "rope_parameters holds {name} {value}, expected {expected} with the parameters of each"
                ));
            }
        }
    }
    fields[0].extend(file.rope_scaling.clone().unwrap_or_default());
    let rope = |i: usize| {
        if let Some(truncate) = fields[i].get("truncate").filter(|value| **value != true) {
            return Err(format!("rope: truncate is {truncate}, expected true"));
        }
        let (fields, theta) = (&fields[i], thetas[i]);
        RopeReader { file, fields, head_dim, rules: &USUAL_ROPE, theta }.read()
    };
    Ok(vec![rope(0)?, rope(1)?])
}

/// Reads the fields of one RoPE.
struct RopeReader<'a> {
    file: &'a ConfigFile,
    fields: &'a RopeFields,
    head_dim: i64,
    rules: &'a RopeRules,
    theta: f64, // default
}

impl RopeReader<'_> {
    fn number(&self, name: &str) -> Resolved<Option<f64>> {
        match self.fields.get(name).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
                _ => Err(format!("rope: {name} is {value}, expected a positive number")),
            },
        }
    }

    fn needed(&self, name: &str) -> Resolved<f64> {
        self.number(name)?.ok_or_else(|| format!("rope: {name} is missing"))
    }

    fn numbers(&self, name: &str, length: i64) -> Resolved<Vec<f64>> {
        let value = self.fields.get(name).unwrap_or(&Value::Null);
        let found = value.as_array().map(|list| list.iter().map(Value::as_f64));
        let found: Option<Vec<f64>> = found.and_then(Iterator::collect);
        match found {
            Some(list) if list.len() as i64 == length && list.iter().all(|x| *x > 0.0) => Ok(list),
            Some(list) if list.len() as i64 != length => {
                let found = list.len();
                Err(format!("rope: {name} holds {found} numbers, expected {length}"))
            }
            _ => Err(format!("rope: {name} is {value}, expected {length} positive numbers")),
        }
    }

    /// The context that frequencies were made for. A field beside the parameters overrides them.
    fn original(&self) -> Resolved<f64> {
        let name = "original_max_position_embeddings";
        let beside = self.file.original_max_position_embeddings.or(self.rules.original);
        let longest = self.file.max_position_embeddings as f64;
        match beside.or(self.number(name)?).unwrap_or(longest) {
            original if original >= 1.0 => Ok(original),
            original => Err(format!("rope: {name} is {original}, expected at least 1")),
        }
    }

    fn read(&self) -> Resolved<RopeOptions> {
        let theta = self.number("rope_theta")?.unwrap_or(self.theta);
        if !(theta.is_finite() && theta > 0.0) {
            return Err(format!("rope_theta is {theta}, expected a positive number"));
        }
        let share = self.number("partial_rotary_factor")?.or(self.file.partial_rotary_factor);
        let share = share.unwrap_or(1.0);
        let rotated = (self.head_dim as f64 * share) as i64;
        if share != 1.0 && !self.rules.is_partial {
            return Err(format!("rope: partial_rotary_factor is {share}, expected 1"));
        }
        if !(2..=self.head_dim).contains(&rotated) || rotated % 2 != 0 {
            let d_h = self.head_dim;
            return Err(format!(
                "rope: partial_rotary_factor is {share}, expected a share of the {d_h} numbers of a head that is even"
            ));
        }
        let text = |name: &str| self.fields.get(name).and_then(Value::as_str);
        let kind = text("rope_type").or(text("type")).unwrap_or("default");
        let renamed = self.rules.renamed.iter().find(|(old, _)| *old == kind);
        let kind = renamed.map_or(kind, |(_, new)| new);
        let (scaling, own) = self.scaling(kind, rotated, theta)?;
        let of_all = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
        let is_known =
            |name: &str| [&of_all[..], own, self.rules.own].iter().any(|all| all.contains(&name));
        match self.fields.iter().find(|(name, value)| !is_known(name) && !says_nothing(value)) {
            Some((name, value)) => Err(format!(
                "rope: {name} is {value}, which rope of type {kind} does not have; name its rope_type, or remove the field"
            )),
            None => Ok(RopeOptions { theta, rotated, scaling }),
        }
    }

    /// The scaling of a type, and the type's fields.
    fn scaling(
        &self,
        kind: &str,
        rotated: i64,
        theta: f64,
    ) -> Resolved<(RopeScaling, &'static [&'static str])> {
        Ok(match kind {
            "default" => (RopeScaling::None, &[]),
            "linear" => (RopeScaling::Linear { factor: self.needed("factor")? }, &["factor"]),
            "dynamic" => {
                let original = self.file.max_position_embeddings;
                if rotated < 4 || original < 1 {
                    return Err(format!(
                        "rope: {rotated} numbers of a head are turned in a context of {original}, expected at least 4 and 1 for type dynamic"
                    ));
                }
                let scaling = RopeScaling::Dynamic {
                    factor: self.needed("factor")?,
                    original_max_position_embeddings: original as f64,
                };
                (scaling, &["factor"])
            }
            "llama3" => {
                let scaling = RopeScaling::Llama3 {
                    factor: self.needed("factor")?,
                    low_freq_factor: self.needed("low_freq_factor")?,
                    high_freq_factor: self.needed("high_freq_factor")?,
                    original_max_position_embeddings: self.original()?,
                };
                let own: &[&str] = &[
                    "factor",
                    "low_freq_factor",
                    "high_freq_factor",
                    "original_max_position_embeddings",
                ];
                (scaling, own)
            }
            "yarn" => (
                self.yarn(theta)?,
                &[
                    "factor",
                    "attention_factor",
                    "beta_fast",
                    "beta_slow",
                    "mscale",
                    "mscale_all_dim",
                    "truncate",
                    "original_max_position_embeddings",
                ],
            ),
            "longrope" => (
                self.longrope(rotated)?,
                &[
                    "factor",
                    "attention_factor",
                    "short_factor",
                    "long_factor",
                    "original_max_position_embeddings",
                ],
            ),
            other => {
                return Err(format!(
                    "rope scaling of type {other:?}, expected default, linear, dynamic, yarn, longrope or llama3"
                ));
            }
        })
    }

    fn yarn(&self, theta: f64) -> Resolved<RopeScaling> {
        let original = self.original()?;
        let factor = match self.fields.get("factor") {
            Some(Value::Null) => self.file.max_position_embeddings as f64 / original,
            _ => self.needed("factor")?,
        };
        if theta == 1.0 {
            return Err("rope_theta is 1, and rope of type yarn needs another".to_owned());
        }
        // the factor of the scores in a context that is `factor` times as long
        let raise = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
        let usual = match (self.number("mscale")?, self.number("mscale_all_dim")?) {
            (Some(mscale), Some(all)) => raise(mscale) / raise(all),
            _ => raise(1.0),
        };
        let truncate = match self.fields.get("truncate") {
            None | Some(Value::Null) => true,
            Some(Value::Bool(truncate)) => *truncate,
            Some(other) => {
                return Err(format!("rope: truncate is {other}, expected true or false"));
            }
        };
        Ok(RopeScaling::Yarn {
            factor,
            attention_factor: self.number("attention_factor")?.unwrap_or(usual),
            beta_fast: self.number("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.number("beta_slow")?.unwrap_or(1.0),
            truncate,
            original_max_position_embeddings: original,
        })
    }

    fn longrope(&self, rotated: i64) -> Resolved<RopeScaling> {
        let original = self.original()?;
        let ratio = self.file.max_position_embeddings as f64 / original;
        let factor = self.number("factor")?.unwrap_or(ratio);
        let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
        let attention_factor = self.number("attention_factor")?.unwrap_or(usual);
        if !attention_factor.is_finite() {
            return Err(format!(
                "rope: original_max_position_embeddings is {original}, expected more than 1"
            ));
        }
        Ok(RopeScaling::LongRope {
            short_factor: self.numbers("short_factor", rotated / 2)?,
            long_factor: self.numbers("long_factor", rotated / 2)?,
            attention_factor,
            original_max_position_embeddings: original,
        })
    }
}
