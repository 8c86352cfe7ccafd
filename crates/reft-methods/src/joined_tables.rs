//! The tensors of adapters that are joined, read by module or by site, and written as one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use reft_models::{Component, Site, load_safetensors};
use tch::{Kind, Tensor};

use crate::files::adapter_file::{self, Beside, OF_PEFT};
use crate::files::own_config::{Branches, tensor_name};
use crate::{JoinPart, Joined, Joint, Result, TensorMethod, read_own};

/// An adapter whose tensors belong to modules by name, read to be joined.
pub(crate) struct ModulePart<M> {
    pub(crate) config: M,
    pub(crate) strength: f64,
    /// By module, then by the name's end; in f64.
    pub(crate) modules: BTreeMap<String, BTreeMap<&'static str, Tensor>>,
}

/// A method whose tensors belong to sites, `layers.3.mlp_output.scale`.
pub(crate) trait BranchMethod: TensorMethod {
    /// Its sites.
    fn sites(&self) -> Vec<Site>;
}

/// An adapter whose tensors belong to sites, read to be joined.
pub(crate) struct BranchPart<M> {
    pub(crate) config: M,
    pub(crate) strength: f64,
    /// By site, then by the name's end; in f64.
    pub(crate) sites: BTreeMap<Site, BTreeMap<&'static str, Tensor>>,
}

/// The layers and components of all parts: the joined adapter has every component at every layer.
pub(crate) fn all_branches<'a>(
    branches: impl Iterator<Item = Branches<'a>>,
) -> (Vec<usize>, Vec<Component>) {
    let (mut layers, mut components) = (BTreeSet::new(), BTreeSet::new());
    for own in branches {
        layers.extend(own.layers);
        components.extend(own.components);
    }
    (layers.into_iter().collect(), components.into_iter().collect())
}

impl Joint<'_> {
    /// Reads adapters whose tensors belong to sites. `ends` are the ends of the tensors' names.
    pub(crate) fn branches<M: BranchMethod>(
        &self,
        ends: &[&'static str],
    ) -> Result<Vec<BranchPart<M>>> {
        let read = |part: &JoinPart| {
            let config: M = read_own(&part.directory)?;
            let tensors = load_safetensors(&part.directory.join(M::DECLARATION.files.tensors()))?;
            let mut sites: BTreeMap<Site, BTreeMap<&'static str, Tensor>> = BTreeMap::new();
            for site in config.sites() {
                for end in ends {
                    let name = tensor_name(site, end);
                    let Some(tensor) = tensors.get(&name) else {
                        let directory = part.directory.display();
                        let reason = format!("{directory}: {name} is missing");
                        return Err(reft_models::Error::Adapter { reason }.into());
                    };
                    sites.entry(site).or_default().insert(end, tensor.to_kind(Kind::Double));
                }
            }
            Ok(BranchPart { config, strength: part.strength, sites })
        };
        self.parts.iter().map(read).collect()
    }

    /// Refuses `svd_rank`, for methods without a rank.
    pub(crate) fn takes_no_rank(&self, method: &str) -> Result<()> {
        if self.options.svd_rank.is_none() {
            return Ok(());
        }
        let reason = format!(
            "{method} is joined as it is: the best approximation of a rank is for lora and rslora"
        );
        Err(reft_models::Error::Adapter { reason }.into())
    }

    /// Reads adapters whose tensors belong to modules. `ends` are the ends of the tensors' names; a module may lack those in `may_lack`.
    pub(crate) fn modules<M: TensorMethod>(
        &self,
        ends: &[&'static str],
        may_lack: &[&str],
    ) -> Result<Vec<ModulePart<M>>> {
        let read = |part: &JoinPart| {
            let refuse = |reason: String| {
                let reason = format!("{}: {reason}", part.directory.display());
                Err(reft_models::Error::Adapter { reason }.into())
            };
            let config: M = read_own(&part.directory)?;
            let mut modules: BTreeMap<String, BTreeMap<&'static str, Tensor>> = BTreeMap::new();
            let file = part.directory.join(M::DECLARATION.files.tensors());
            for (name, tensor) in load_safetensors(&file)? {
                let of_end = |end: &&'static str| {
                    let module =
                        name.strip_prefix(OF_PEFT)?.strip_suffix(*end)?.strip_suffix('.')?;
                    Some((module.to_owned(), *end))
                };
                if let Some((module, end)) = ends.iter().find_map(of_end) {
                    modules.entry(module).or_default().insert(end, tensor.to_kind(Kind::Double));
                } else if config.other().is_some_and(|(_, other)| other.has_head(&name)) {
                    return refuse(format!(
                        "{name} belongs to the head of a task, and heads do not add up; only adapters without one are joined"
                    ));
                } else {
                    return refuse(format!("{name} is unexpected in an adapter of this method"));
                }
            }
            for (module, tensors) in &modules {
                let is_missing =
                    |end: &&&str| !may_lack.contains(*end) && !tensors.contains_key(**end);
                if let Some(end) = ends.iter().find(is_missing) {
                    return refuse(format!("{OF_PEFT}{module}.{end} is missing"));
                }
            }
            Ok(ModulePart { config, strength: part.strength, modules })
        };
        self.parts.iter().map(read).collect()
    }

    /// Writes configuration and tensors, in f32, and describes them.
    pub(crate) fn write<M: TensorMethod>(
        &self,
        config: &M,
        tensors: &[(String, Tensor)],
        output: &Path,
    ) -> Result<Joined> {
        config.check()?;
        let mut kept = Vec::with_capacity(tensors.len());
        for (name, tensor) in tensors {
            let tensor = tensor.to_kind(Kind::Float).contiguous();
            if !bool::try_from(tensor.isfinite().all()).map_err(reft_models::Error::from)? {
                let reason = format!(
                    "joining makes {name} infinite or NaN; an adapter is broken, or its strength too large"
                );
                return Err(reft_models::Error::Adapter { reason }.into());
            }
            kept.push((name.clone(), tensor));
        }
        let (base_model, text) = (self.base_model.as_ref(), self.text.as_ref());
        let beside = Beside { base_model, text, ..Beside::default() };
        let parameters = kept.iter().map(|(_, tensor)| tensor.numel() as i64).sum();
        adapter_file::write(M::DECLARATION.files, output, config, kept, beside)?;
        Ok(Joined {
            method: config.name().to_owned(),
            parameters,
            modules: Vec::new(),
            notes: Vec::new(),
        })
    }
}

/// Every module of some adapters, each once, in order.
pub(crate) fn all_modules<M>(parts: &[ModulePart<M>]) -> BTreeSet<String> {
    parts.iter().flat_map(|part| part.modules.keys().cloned()).collect()
}

/// Refuses tensors of one module whose shapes cannot belong to one projection.
pub(crate) fn check_sizes(module: &str, sizes: &[Vec<i64>]) -> Result<()> {
    match sizes.iter().find(|size| **size != sizes[0]) {
        None => Ok(()),
        Some(other) => {
            let reason = format!(
                "the adapters have {module} with sizes {:?} and {other:?}, which are not one module's; use adapters that change the same \
                 end of the modules of one model",
                sizes[0]
            );
            Err(reft_models::Error::Adapter { reason }.into())
        }
    }
}
