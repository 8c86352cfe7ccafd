use std::collections::BTreeMap;
use std::path::Path;

use reft_core::Parameter;
use reft_models::{
    Adapter, BaseModel, Component, Decoder, DecoderConfig, Hooks, Layout, Mode, Reach, Result, Row,
    Site, Span,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::baseline_file::{self, FORMAT_VERSION};
use crate::leaves::{leaf, load_state, state_of};
use crate::peft_file::Shapes;

/// RED, representation editing: `h ← l ⊙ h + b` at every token.
///
/// Wu et al. 2024 (arXiv:2402.15179): one scaling and one bias vector per layer, on what the MLP adds to the residual stream (or on
/// the block's output). `l` starts at 1 and `b` at 0, so training begins from the base model.
#[derive(Debug)]
pub struct RedAdapter {
    config: RedConfig,
    edits: BTreeMap<Site, (Tensor, Tensor)>, // l [d], b [d]
}

/// `baseline_config.json` of RED.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedConfig {
    /// Version of the format: 1.
    pub format_version: u32,
    /// `red`.
    pub method: RedMethod,
    /// Layers edited, 0-based, each once, in ascending order.
    pub layers: Vec<usize>,
    /// Where: mlp_output, block_output, or both.
    #[serde(with = "crate::baseline_file::component_names")]
    pub components: Vec<Component>,
    /// The model it belongs to.
    pub base_model: BaseModel,
}

/// The method's name in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RedMethod {
    /// `red`
    Red,
}

/// Where RED can stand.
const COMPONENTS: [Component; 2] = [Component::MlpOutput, Component::BlockOutput];

impl RedConfig {
    /// RED at `components` of `layers`.
    pub fn new(layers: Vec<usize>, components: Vec<Component>, base_model: BaseModel) -> Self {
        let (format_version, method) = (FORMAT_VERSION, RedMethod::Red);
        Self { format_version, method, layers, components, base_model }
    }

    /// Checks that there can be such an adapter of a model.
    ///
    /// # Errors
    /// [`reft_models::Error::Adapter`] if it has no such layer or component, or is another one.
    pub fn check(&self, model: &DecoderConfig) -> Result<()> {
        let Self { format_version, layers, components, base_model, .. } = self;
        baseline_file::check(*format_version, layers, components, &COMPONENTS, base_model, model)
    }

    fn sites(&self) -> impl Iterator<Item = Site> {
        let components = &self.components;
        let sites =
            move |&layer| components.iter().map(move |&component| Site { layer, component });
        self.layers.iter().flat_map(sites)
    }
}

impl RedAdapter {
    /// A new adapter.
    ///
    /// # Errors
    /// [`reft_models::Error::Adapter`] if the model has no such layer or component, or is another one.
    pub fn new(config: RedConfig, decoder: &Decoder) -> Result<Self> {
        let options = (Kind::Float, Device::Cpu);
        let d = decoder.config().hidden_size;
        Self::with_tensors(config, decoder, &|_, tensor| match tensor {
            "scale" => Tensor::ones([d], options),
            _ => Tensor::zeros([d], options),
        })
    }

    /// Reads an adapter.
    ///
    /// # Errors
    /// If a file is missing or broken, a tensor is missing, unexpected or misshapen (by name), or the model is another one.
    pub fn load(dir: &Path, decoder: &Decoder) -> Result<Self> {
        let (config, tensors) = Self::read(dir, decoder.config())?;
        Self::with_tensors(config, decoder, &|site, tensor| {
            tensors[&tensor_name(site, tensor)].shallow_clone()
        })
    }

    /// Configuration and tensors of a directory, checked against a model.
    pub(crate) fn read(
        dir: &Path,
        model: &DecoderConfig,
    ) -> Result<(RedConfig, BTreeMap<String, Tensor>)> {
        let config: RedConfig = baseline_file::read_config(dir)?;
        config.check(model)?;
        let names = config.sites().flat_map(|site| ["scale", "bias"].map(|t| tensor_name(site, t)));
        let expected: Shapes = names.map(|name| (name, vec![model.hidden_size])).collect();
        let tensors = baseline_file::read(dir, &expected, model)?;
        Ok((config, tensors))
    }

    fn with_tensors(
        config: RedConfig,
        decoder: &Decoder,
        tensor: &dyn Fn(Site, &str) -> Tensor,
    ) -> Result<Self> {
        config.check(decoder.config())?;
        let make = |site, name| leaf(&tensor(site, name), decoder.device());
        let edits = config.sites().map(|site| (site, (make(site, "scale"), make(site, "bias"))));
        Ok(Self { edits: edits.collect(), config })
    }

    /// What the adapter is.
    pub fn config(&self) -> &RedConfig {
        &self.config
    }
}

/// `layers.3.mlp_output.scale`
fn tensor_name(site: Site, tensor: &str) -> String {
    format!("layers.{}.{}.{tensor}", site.layer, site.component)
}

impl Adapter for RedAdapter {
    fn method(&self) -> &str {
        "red"
    }

    fn parameters(&self) -> Vec<Parameter> {
        let edit = |(site, (scale, bias)): (&Site, &(Tensor, Tensor))| {
            // decay would pull the scale to 0, not to the base model
            let scale = Parameter::without_weight_decay(tensor_name(*site, "scale"), scale);
            [scale, Parameter::new(tensor_name(*site, "bias"), bias)]
        };
        self.edits.iter().flat_map(edit).collect()
    }

    fn hooks<'a>(&'a self, _layout: &'a Layout, _mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        Ok(Box::new(RedHooks { edits: &self.edits }))
    }

    fn reach(&self, _row: &Row) -> Reach {
        Reach::of_sites(self.edits.keys().copied(), 0)
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        state_of(&self.parameters())
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        load_state(&self.parameters(), state)
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let tensors: Vec<_> = self.parameters().into_iter().map(|p| (p.name, p.tensor)).collect();
        baseline_file::write(dir, &self.config, &tensors, &self.config.base_model)
    }
}

/// The edits in one forward.
struct RedHooks<'a> {
    edits: &'a BTreeMap<Site, (Tensor, Tensor)>,
}

impl Hooks for RedHooks<'_> {
    fn visit(&mut self, site: Site, h: Tensor, _span: &Span) -> Result<Tensor> {
        let Some((scale, bias)) = self.edits.get(&site) else { return Ok(h) };
        Ok((&h * scale + bias).to_kind(h.kind())) // l ⊙ h + b [b, t, d]
    }
}
