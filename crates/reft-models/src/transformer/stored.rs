//! The tensors of a model in a checkpoint.

use std::collections::{BTreeSet, HashSet};

use tch::{Device, Kind};

use crate::{DecoderConfig, ModelDescription, ModelTensor, Result, TensorRole, Weights};

/// The layout of a model's tensors in a checkpoint.
pub(crate) struct Stored {
    /// The configuration to use.
    pub(crate) config: DecoderConfig,
    pub(crate) description: ModelDescription,
    /// The name in the checkpoint of each tensor of the description.
    pub(crate) names: Vec<String>,
}

impl Stored {
    pub(crate) fn new(mut config: DecoderConfig, weights: &Weights) -> Result<Self> {
        let names = config.names;
        let embeddings = format!("{}.weight", names.embeddings);
        let head = names.head.map(|head| format!("{head}.weight"));
        let has = |name: &str| weights.shape(name).is_some();
        let has_head = head.as_deref().is_some_and(has);
        if let Some(head) = &head
            && config.tie_word_embeddings
            && has(&embeddings)
            && has_head
        {
            config.tie_word_embeddings = weights.are_equal(&embeddings, head)?;
        }
        let description = config.describe();
        let is_tied = config.tie_word_embeddings;
        // tied embeddings that are stored only under the head's name
        let stored_as = head.as_ref().filter(|_| is_tied && has_head && !has(&embeddings));
        let prefix = names.prefix.map(|prefix| format!("{prefix}."));
        let prefix = prefix.filter(|prefix| weights.names().any(|name| name.starts_with(prefix)));
        let prefix = prefix.unwrap_or_default();
        let stored_name = |tensor: &ModelTensor| match (tensor.role, stored_as) {
            (TensorRole::Embeddings, Some(head)) => head.clone(),
            _ => {
                let name = format!("{prefix}{}", tensor.name);
                let old = older_name(&name).filter(|old| !has(&name) && has(old));
                old.unwrap_or(name)
            }
        };
        let names: Vec<String> = description.tensors.iter().map(stored_name).collect();
        let heads = match config.names.head {
            None => heads_in(weights, &description, &prefix),
            Some(_) => HashSet::new(),
        };
        let stored = names.iter().map(String::as_str);
        let shapes = description.tensors.iter().map(|tensor| tensor.shape.as_slice());
        // ignored: constants that some checkpoints carry, a copy of a tied head, and a head on an encoder
        weights.check(stored.zip(shapes), &|name| {
            is_constant(weights, name)
                || (is_tied && head.as_deref() == Some(name))
                || heads.contains(name)
        })?;
        if !heads.is_empty() {
            log::info!("{}: {}", weights.path().display(), beside_the_encoder(&heads));
        }
        Ok(Self { config, description, names })
    }
}

/// The name of a norm's tensor in checkpoints of 2018 and 2019, which hub files still have.
fn older_name(name: &str) -> Option<String> {
    let old = |new: &str, old: &str| Some(format!("{}{old}", name.strip_suffix(new)?));
    old("LayerNorm.weight", "LayerNorm.gamma").or_else(|| old("LayerNorm.bias", "LayerNorm.beta"))
}

/// The tensors of a pooler and of task heads on an encoder, whose own tensors begin with `prefix`.
fn heads_in<'w>(
    weights: &'w Weights,
    description: &ModelDescription,
    prefix: &str,
) -> HashSet<&'w str> {
    let own: HashSet<&str> = description.tensors.iter().map(|own| module_of(&own.name)).collect();
    let is_head =
        |name: &&str| name.strip_prefix(prefix).is_none_or(|rest| !own.contains(module_of(rest)));
    weights.names().filter(is_head).collect()
}

/// A message about the tensors beside an encoder: BERT's task head reads the pooler; the others are ignored.
fn beside_the_encoder(heads: &HashSet<&str>) -> String {
    let mut modules: BTreeSet<&str> = heads.iter().map(|name| module_of(name)).collect();
    let pooler =
        if modules.remove("pooler") { ", its pooler where a head stands on it" } else { "" };
    let others = Vec::from_iter(modules).join(", ");
    let others = if others.is_empty() { others } else { format!("; {others} left out") };
    format!("the encoder is read{pooler}{others}")
}

/// The outermost module of a name.
fn module_of(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

/// Whether a tensor of a checkpoint changes no number: tables that follow from the configuration, and scales of 1.
fn is_constant(weights: &Weights, name: &str) -> bool {
    const TABLES: [&str; 4] = [
        "rotary_emb.inv_freq",
        "rotary_emb.cos_cached",
        "rotary_emb.sin_cached",
        "embeddings.position_ids",
    ];
    const SCALES: [&str; 3] = [".q_scale", ".k_scale", ".v_scale"];
    let is_one = || {
        let scale = weights.load(name, Kind::Float, Device::Cpu);
        scale.is_ok_and(|scale| scale.eq(1.0).all().int64_value(&[]) == 1)
    };
    TABLES.iter().any(|table| name.ends_with(table))
        || (SCALES.iter().any(|scale| name.ends_with(scale)) && is_one())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pooler_is_not_left_out() {
        let said = |names: &[&'static str]| beside_the_encoder(&names.iter().copied().collect());
        let pooler = "the encoder is read, its pooler where a head stands on it";
        assert_eq!(said(&["pooler.dense.weight", "pooler.dense.bias"]), pooler);
        assert_eq!(
            said(&["pooler.dense.bias", "cls.predictions.bias"]),
            format!("{pooler}; cls left out")
        );
        assert_eq!(said(&["lm_head.bias"]), "the encoder is read; lm_head left out");
    }
}
