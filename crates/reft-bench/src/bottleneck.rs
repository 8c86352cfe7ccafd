use std::collections::BTreeMap;
use std::path::Path;

use reft_core::{Activation, Parameter};
use reft_models::{
    Adapter, BaseModel, Component, Decoder, DecoderConfig, Error, Hooks, Layout, Mode, Reach,
    Result, Row, Site, Span,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::baseline_file::{self, FORMAT_VERSION};
use crate::leaves::{leaf, load_state, state_of, uniform};
use crate::peft_config::check_positive;
use crate::peft_file::Shapes;

/// Bottleneck adapters: a small MLP beside or behind a branch of every block.
///
/// ```text
/// series:    f ← f + U σ(D f + c) + e      f: what attention or the MLP adds to the residual stream, [b, t, d]
/// parallel:  f ← f + U σ(D x + c) + e      x: what goes into attention or the MLP (normalised), [b, t, d]
/// ```
///
/// with `D` `[m, d]` and `U` `[d, m]`. Series: Houlsby et al. 2019 (arXiv:1902.00751), after both branches or, as Pfeiffer et al. 2020
/// (arXiv:2005.00247), after the MLP only; parallel: He et al. 2021 (arXiv:2110.04366), with the activation and both biases of
/// LLM-Adapters (Hu et al. 2023, arXiv:2304.01933). `U` and `e` start at 0, so training begins from the base model.
#[derive(Debug)]
pub struct BottleneckAdapter {
    config: BottleneckConfig,
    adapters: BTreeMap<Site, Bottleneck>,
}

/// `baseline_config.json` of bottleneck adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BottleneckConfig {
    /// Version of the format: 1.
    pub format_version: u32,
    /// Behind or beside.
    pub method: BottleneckKind,
    /// Layers adapted, 0-based, each once, in ascending order.
    pub layers: Vec<usize>,
    /// Where: attention_output, mlp_output, or both.
    #[serde(with = "crate::baseline_file::component_names")]
    pub components: Vec<Component>,
    /// Inner size `m`.
    pub bottleneck_size: i64,
    /// `σ`.
    pub act_fn: Activation,
    /// The model it belongs to.
    pub base_model: BaseModel,
}

/// Where a bottleneck adapter takes its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BottleneckKind {
    /// From the branch's output.
    #[serde(rename = "series-adapter")]
    Series,
    /// From the branch's input.
    #[serde(rename = "parallel-adapter")]
    Parallel,
}

impl BottleneckKind {
    /// The name used in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Series => "series-adapter",
            Self::Parallel => "parallel-adapter",
        }
    }
}

/// Where bottleneck adapters can stand.
const COMPONENTS: [Component; 2] = [Component::AttentionOutput, Component::MlpOutput];

/// One small MLP.
#[derive(Debug)]
struct Bottleneck {
    down: (Tensor, Tensor), // D [m, d], c [m]
    up: (Tensor, Tensor),   // U [d, m], e [d]
}

const TENSORS: [&str; 4] = ["down.weight", "down.bias", "up.weight", "up.bias"];

impl BottleneckConfig {
    /// Adapters with inner size `m` at `components` of `layers`, with ReLU.
    pub fn new(
        method: BottleneckKind,
        bottleneck_size: i64,
        layers: Vec<usize>,
        components: Vec<Component>,
        base_model: BaseModel,
    ) -> Self {
        let (format_version, act_fn) = (FORMAT_VERSION, Activation::Relu);
        Self { format_version, method, layers, components, bottleneck_size, act_fn, base_model }
    }

    /// Checks that there can be such an adapter of a model.
    ///
    /// # Errors
    /// [`Error::Adapter`] if it has no such layer or component, or is another one, or the inner size is none.
    pub fn check(&self, model: &DecoderConfig) -> Result<()> {
        let Self { format_version, layers, components, base_model, .. } = self;
        check_positive("bottleneck_size", self.bottleneck_size)?;
        baseline_file::check(*format_version, layers, components, &COMPONENTS, base_model, model)
    }

    fn sites(&self) -> impl Iterator<Item = Site> {
        let components = &self.components;
        let sites =
            move |&layer| components.iter().map(move |&component| Site { layer, component });
        self.layers.iter().flat_map(sites)
    }

    /// Shape of each of [`TENSORS`].
    fn shapes(&self, d: i64) -> [Vec<i64>; 4] {
        let m = self.bottleneck_size;
        [vec![m, d], vec![m], vec![d, m], vec![d]]
    }
}

impl BottleneckAdapter {
    /// A new adapter. Random numbers come from libtorch's CPU generator ([`tch::manual_seed`]).
    ///
    /// # Errors
    /// [`Error::Adapter`] if the inner size is not one, the model has no such layer or component, or is another one.
    pub fn new(config: BottleneckConfig, decoder: &Decoder) -> Result<Self> {
        let d = decoder.config().hidden_size;
        Self::with_tensors(config, decoder, &mut |_, tensor, shape| match tensor {
            "down.weight" | "down.bias" => uniform(shape, d),
            _ => Tensor::zeros(shape, (Kind::Float, Device::Cpu)),
        })
    }

    /// Reads an adapter.
    ///
    /// # Errors
    /// If a file is missing or broken, a tensor is missing, unexpected or misshapen (by name), or the model is another one.
    pub fn load(dir: &Path, decoder: &Decoder) -> Result<Self> {
        let (config, tensors) = Self::read(dir, decoder.config())?;
        Self::with_tensors(config, decoder, &mut |site, tensor, _| {
            tensors[&tensor_name(site, tensor)].shallow_clone()
        })
    }

    /// Configuration and tensors of a directory, checked against a model.
    pub(crate) fn read(
        dir: &Path,
        model: &DecoderConfig,
    ) -> Result<(BottleneckConfig, BTreeMap<String, Tensor>)> {
        let config: BottleneckConfig = baseline_file::read_config(dir)?;
        config.check(model)?;
        let shapes = config.shapes(model.hidden_size);
        let mut expected = Shapes::new();
        for site in config.sites() {
            let tensors = TENSORS.iter().zip(&shapes);
            expected.extend(tensors.map(|(name, shape)| (tensor_name(site, name), shape.clone())));
        }
        let tensors = baseline_file::read(dir, &expected, model)?;
        Ok((config, tensors))
    }

    fn with_tensors(
        config: BottleneckConfig,
        decoder: &Decoder,
        tensor: &mut dyn FnMut(Site, &str, &[i64]) -> Tensor,
    ) -> Result<Self> {
        config.check(decoder.config())?;
        let shapes = config.shapes(decoder.config().hidden_size);
        let mut adapters = BTreeMap::new();
        for site in config.sites() {
            let mut make = |i: usize| leaf(&tensor(site, TENSORS[i], &shapes[i]), decoder.device());
            let down = (make(0), make(1));
            adapters.insert(site, Bottleneck { down, up: (make(2), make(3)) });
        }
        Ok(Self { config, adapters })
    }

    /// What the adapter is.
    pub fn config(&self) -> &BottleneckConfig {
        &self.config
    }
}

/// `layers.3.mlp_output.down.weight`
fn tensor_name(site: Site, tensor: &str) -> String {
    format!("layers.{}.{}.{tensor}", site.layer, site.component)
}

impl Adapter for BottleneckAdapter {
    fn method(&self) -> &str {
        self.config.method.name()
    }

    fn parameters(&self) -> Vec<Parameter> {
        let of_site = |(site, adapter): (&Site, &Bottleneck)| {
            let Bottleneck { down, up } = adapter;
            let tensors = [&down.0, &down.1, &up.0, &up.1];
            let named = TENSORS.into_iter().zip(tensors);
            named.map(|(name, tensor)| Parameter::new(tensor_name(*site, name), tensor)).collect()
        };
        self.adapters.iter().flat_map::<Vec<_>, _>(of_site).collect()
    }

    fn hooks<'a>(&'a self, _layout: &'a Layout, _mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        Ok(Box::new(BottleneckHooks { adapter: self, input: None }))
    }

    fn reach(&self, _row: &Row) -> Reach {
        Reach::of_sites(self.adapters.keys().copied(), 0)
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

/// The adapters in one forward.
struct BottleneckHooks<'a> {
    adapter: &'a BottleneckAdapter,
    input: Option<(Site, Tensor)>, // what went into the present branch, of parallel adapters
}

impl Hooks for BottleneckHooks<'_> {
    fn projection_input(&mut self, site: Site, x: Tensor, _span: &Span) -> Result<Tensor> {
        // attention and the MLP begin with these projections
        let branch = match site.component {
            Component::Query => Component::AttentionOutput,
            Component::Gate => Component::MlpOutput,
            _ => return Ok(x),
        };
        let branch = Site { layer: site.layer, component: branch };
        let is_parallel = self.adapter.config.method == BottleneckKind::Parallel;
        if is_parallel && self.adapter.adapters.contains_key(&branch) {
            self.input = Some((branch, x.shallow_clone()));
        }
        Ok(x)
    }

    fn visit(&mut self, site: Site, h: Tensor, _span: &Span) -> Result<Tensor> {
        let Some(Bottleneck { down, up }) = self.adapter.adapters.get(&site) else { return Ok(h) };
        let x = match self.adapter.config.method {
            BottleneckKind::Series => h.shallow_clone(),
            BottleneckKind::Parallel => match self.input.take() {
                Some((branch, x)) if branch == site => x,
                _ => {
                    let reason = format!("the input of the branch at {site} was not seen");
                    return Err(Error::Adapter { reason });
                }
            },
        };
        let inner = x.to_kind(Kind::Float).linear(&down.0, Some(&down.1)); // D x + c [b, t, m]
        let inner = self.adapter.config.act_fn.apply(inner);
        Ok((&h + inner.linear(&up.0, Some(&up.1))).to_kind(h.kind())) // [b, t, d]
    }
}
