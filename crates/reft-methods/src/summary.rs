use std::collections::BTreeSet;
use std::path::Path;

use reft_models::{BaseModel, Component, Site, TrainedText, load_safetensors};

use crate::files::adapter_file;
use crate::files::head_file::{self, HeadSummary};
use crate::{
    AdapterFiles, MethodDeclaration, MethodOptions, Methods, ReftConfig, Result, adapter_bytes,
    adapters_in,
};

/// Describes an adapter directory without its base model's weights.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSummary {
    /// The method, as on the command line.
    pub method: String,
    /// The method's options.
    pub options: MethodOptions,
    /// Where it works; empty if that is before all layers (prompt) or in all of them (prefix).
    pub sites: Vec<Site>,
    /// Number of its parameters, without a head's.
    pub parameters: i64,
    /// The head of a task beside it.
    pub head: Option<HeadSummary>,
    /// Size of its files.
    pub bytes: u64,
    /// Name of its base model, if the files say it.
    pub base_model_name: Option<String>,
    /// The identity of its base model, if the files say it.
    pub base_model: Option<BaseModel>,
    /// How the texts were framed that it was trained on, if the files say it.
    pub text: Option<TrainedText>,
    /// The adapters of a directory that holds several.
    pub parts: Vec<AdapterSummary>,
}

impl AdapterSummary {
    /// Reads a directory.
    ///
    /// # Errors
    /// [`crate::Error::NotAnAdapter`]; a file that is missing or broken.
    pub fn read(dir: &Path) -> Result<Self> {
        let adapters = adapters_in(dir)?;
        let parts = adapters.iter().map(|(part, declaration)| Self::of_one(part, declaration));
        let mut parts: Vec<Self> = parts.collect::<Result<_>>()?;
        if adapters[0].0 == dir {
            return Ok(parts.remove(0));
        }
        let (method, options) = Methods::read(dir)?.describe();
        let sites: BTreeSet<Site> = parts.iter().flat_map(|part| part.sites.clone()).collect();
        Ok(Self {
            method,
            options,
            sites: sites.into_iter().collect(),
            parameters: parts.iter().map(|part| part.parameters).sum(),
            head: parts.iter().find_map(|part| part.head.clone()),
            bytes: adapter_bytes(dir)?,
            base_model_name: parts.iter().find_map(|part| part.base_model_name.clone()),
            base_model: parts.iter().find_map(|part| part.base_model.clone()),
            text: parts.iter().find_map(|part| part.text.clone()),
            parts,
        })
    }

    fn of_one(dir: &Path, declaration: &MethodDeclaration) -> Result<Self> {
        let (method, files) = ((declaration.read)(dir)?, declaration.files);
        let tensors = load_safetensors(&dir.join(files.tensors()))?;
        let sites: BTreeSet<Site> = tensors.keys().filter_map(|name| site_of(name)).collect();
        let head = head_file::summary(files, dir)?;
        let in_file = head.as_ref().filter(|_| matches!(files, AdapterFiles::Peft(_)));
        let of_head = in_file.map_or(0, |head| head.parameters);
        let base_model = match files {
            AdapterFiles::Reft => Some(ReftConfig::read(dir)?.base_model),
            _ => adapter_file::base_model(files, dir)?,
        };
        let named = base_model.as_ref().and_then(|base_model| base_model.name.clone());
        let in_config = match files {
            AdapterFiles::Peft(_) => adapter_file::base_model_name(files, dir)?,
            _ => None,
        };
        Ok(Self {
            method: method.name().to_owned(),
            options: method.options(),
            sites: sites.into_iter().collect(),
            parameters: tensors.values().map(|tensor| tensor.numel() as i64).sum::<i64>() - of_head,
            head,
            bytes: adapter_bytes(dir)?,
            base_model_name: named.or(in_config).filter(|name| !name.is_empty()),
            base_model,
            text: TrainedText::read(&dir.join(files.tensors()))?,
            parts: Vec::new(),
        })
    }
}

/// The site in a tensor's name: `layers.3.mlp_output.scale`, `…layers.2.self_attn.q_proj.lora_A.weight`.
fn site_of(tensor: &str) -> Option<Site> {
    let mut parts = tensor.split('.').skip_while(|part| *part != "layers").skip(1);
    let layer = parts.next()?.parse().ok()?;
    let component = parts.find_map(|part| part.parse::<Component>().ok())?;
    Some(Site { layer, component })
}
