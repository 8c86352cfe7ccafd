use std::collections::BTreeSet;
use std::path::Path;

use reft_models::{
    BaseModel, Component, DecoderConfig, Error, ReftAdapter, ReftConfig, Site, load_safetensors,
};

use crate::adapter_files::{adapter_bytes, adapter_files};
use crate::bottleneck::{BottleneckAdapter, BottleneckConfig};
use crate::combined::CombinedAdapter;
use crate::error::Result;
use crate::ia3::Ia3Adapter;
use crate::lora::LoraAdapter;
use crate::method_config::MethodOptions;
use crate::method_description::adapter_options;
use crate::prefix::PrefixAdapter;
use crate::prompt::PromptAdapter;
use crate::red::{RedAdapter, RedConfig};
use crate::registry::AdapterKind;
use crate::{baseline_file, peft_file};

/// What an adapter directory holds, told without its base model's weights.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSummary {
    /// What its files are.
    pub kind: AdapterKind,
    /// The method, as on the command line.
    pub method: String,
    /// The method's options.
    pub options: MethodOptions,
    /// Where it works; empty if that is before all layers (prompt) or in all of them (prefix).
    pub sites: Vec<Site>,
    /// Numbers in its file.
    pub parameters: i64,
    /// Size of its files.
    pub bytes: u64,
    /// Name of its base model, if the files say it.
    pub base_model_name: Option<String>,
    /// What identifies its base model, if the files say it.
    pub base_model: Option<BaseModel>,
    /// The adapters of a combination.
    pub parts: Vec<AdapterSummary>,
}

impl AdapterSummary {
    /// Reads a directory.
    ///
    /// # Errors
    /// [`crate::Error::NotAnAdapter`]; a file that is missing or broken.
    pub fn read(dir: &Path) -> Result<Self> {
        let kind = AdapterKind::of(dir)?;
        let (method, options) = adapter_options(dir)?;
        let bytes = adapter_bytes(dir)?;
        if kind == AdapterKind::Combined {
            let parts = CombinedAdapter::parts(dir)?;
            let parts: Vec<Self> =
                parts.iter().map(|part| Self::read(part)).collect::<Result<_>>()?;
            let sites: BTreeSet<Site> = parts.iter().flat_map(|part| part.sites.clone()).collect();
            return Ok(Self {
                kind,
                method,
                options,
                sites: sites.into_iter().collect(),
                parameters: parts.iter().map(|part| part.parameters).sum(),
                bytes,
                base_model_name: parts.iter().find_map(|part| part.base_model_name.clone()),
                base_model: parts.iter().find_map(|part| part.base_model.clone()),
                parts,
            });
        }
        let file = adapter_files(dir)?.swap_remove(0);
        let tensors = load_safetensors(&file)?;
        let sites: BTreeSet<Site> = tensors.keys().filter_map(|name| site_of(name)).collect();
        let base_model = base_model(kind, dir, &file)?;
        let named = base_model.as_ref().and_then(|base_model| base_model.name.clone());
        Ok(Self {
            kind,
            method,
            options,
            sites: sites.into_iter().collect(),
            parameters: tensors.values().map(|tensor| tensor.numel() as i64).sum(),
            bytes,
            base_model_name: named.or(peft_name(kind, dir)?).filter(|name| !name.is_empty()),
            base_model,
            parts: Vec::new(),
        })
    }
}

/// Checks that the adapter in a directory belongs to a model, tensor by tensor, without loading the model's weights.
///
/// # Errors
/// What loading it refuses: fields and tensors by name, another base model.
pub fn check_adapter(dir: &Path, model: &DecoderConfig) -> Result<()> {
    match AdapterKind::of(dir)? {
        AdapterKind::Reft => {
            ReftConfig::read(dir)?.check_model(model)?;
            ReftAdapter::load_alone(dir).map(drop)?;
        }
        AdapterKind::Lora => LoraAdapter::read(dir, model).map(drop)?,
        AdapterKind::Prefix => PrefixAdapter::read(dir, model).map(drop)?,
        AdapterKind::Prompt => PromptAdapter::read(dir, model).map(drop)?,
        AdapterKind::Ia3 => Ia3Adapter::read(dir, model).map(drop)?,
        AdapterKind::Red => RedAdapter::read(dir, model).map(drop)?,
        AdapterKind::Bottleneck => BottleneckAdapter::read(dir, model).map(drop)?,
        AdapterKind::Combined => {
            return CombinedAdapter::parts(dir)?
                .iter()
                .try_for_each(|part| check_adapter(part, model));
        }
        AdapterKind::Full => {
            let (found, expected) = (AdapterSummary::read(dir)?.parameters, model.parameters());
            if found != expected {
                let reason = format!("the file holds {found} numbers, the model has {expected}");
                return Err(Error::Adapter { reason }.into());
            }
        }
    }
    Ok(())
}

/// The site in a tensor's name: `layers.3.mlp_output.scale`, `…layers.2.self_attn.q_proj.lora_A.weight`.
fn site_of(tensor: &str) -> Option<Site> {
    let mut parts = tensor.split('.').skip_while(|part| *part != "layers").skip(1);
    let layer = parts.next()?.parse().ok()?;
    let component = parts.find_map(|part| part.parse::<Component>().ok())?;
    Some(Site { layer, component })
}

fn base_model(kind: AdapterKind, dir: &Path, tensors: &Path) -> Result<Option<BaseModel>> {
    Ok(match kind {
        AdapterKind::Reft => Some(ReftConfig::read(dir)?.base_model),
        AdapterKind::Red => Some(baseline_file::read_config::<RedConfig>(dir)?.base_model),
        AdapterKind::Bottleneck => {
            Some(baseline_file::read_config::<BottleneckConfig>(dir)?.base_model)
        }
        _ => peft_file::base_model(tensors)?,
    })
}

/// The base model's name in PEFT's configuration.
fn peft_name(kind: AdapterKind, dir: &Path) -> Result<Option<String>> {
    let is_peft = [AdapterKind::Lora, AdapterKind::Prefix, AdapterKind::Prompt, AdapterKind::Ia3];
    if !is_peft.contains(&kind) {
        return Ok(None);
    }
    let config: serde_json::Value = peft_file::read_config(dir)?;
    Ok(config["base_model_name_or_path"].as_str().map(str::to_owned))
}
