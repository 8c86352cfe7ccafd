use std::path::Path;

use reft_core::{Activation, names};
use reft_models::{
    BaseModel, Component, Error, HookPoint, Hooks, Layout, Mode, ModelDescription, Result, Site,
    Span,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::files::own_config::{Branches, FORMAT_VERSION, tensor_name};
use crate::joined_tables::{BranchMethod, all_branches};
use crate::{
    ACT_FN, ActsOn, AdapterFiles, BOTTLENECK_SIZE, COMPONENTS, Joined, Joining, Joint, Keeps,
    LAYERS, MadeHooks, Merging, MethodDeclaration, MethodOptions, Part, Start, TOKENS, Table,
    TensorMethod, TensorSpec, check_positive, read_config, resolve_config,
};

/// Series adapters: a small MLP behind a branch of every block.
///
/// ```text
/// series:    f ← f + U σ(D f + c) + e      f: what attention or the MLP adds to the residual stream, [b, t, d]
/// parallel:  f ← f + U σ(D x + c) + e      x: the input of attention or the MLP (normalised), [b, t, d]
/// ```
///
/// with `D` `[m, d]` and `U` `[d, m]`. Series: Houlsby et al. 2019 (arXiv:1902.00751), after both branches or, as Pfeiffer et al. 2020
/// (arXiv:2005.00247), after the MLP only; parallel: He et al. 2021 (arXiv:2110.04366), with the activation and both biases of
/// LLM-Adapters (Hu et al. 2023, arXiv:2304.01933). `U` and `e` start at 0, so training begins from the base model.
pub(crate) const SERIES: MethodDeclaration = MethodDeclaration {
    name: "series-adapter",
    title: "series adapter",
    equation: "f ← f + U σ(D f + c) + e",
    source: "Houlsby et al. 2019, arXiv:1902.00751",
    options: &[&LAYERS, &ACT_FN, &COMPONENTS, &BOTTLENECK_SIZE, &TOKENS],
    files: AdapterFiles::Own,
    merging: Merging::Never("it is an MLP of its own, with an activation inside"),
    joining: Joining::Exactly {
        with: &["series-adapter"],
        how: "layers and components together, where no branch has two of them",
        needs_weights: false,
        join,
    },
    acts_on_generated: true,
    per_row: true,
    usual_lr: 1e-3,
    resolve: resolve_config::<BottleneckConfig>,
    read: read_config::<BottleneckConfig>,
};

/// Parallel adapters: a small MLP beside a branch of every block.
pub(crate) const PARALLEL: MethodDeclaration = MethodDeclaration {
    name: "parallel-adapter",
    title: "parallel adapter",
    equation: "f ← f + U σ(D x + c) + e",
    source: "He et al. 2021, arXiv:2110.04366",
    joining: Joining::Exactly {
        with: &["parallel-adapter"],
        how: "layers and components together; the inner sizes of one branch are concatenated",
        needs_weights: false,
        join,
    },
    ..SERIES
};

/// `baseline_config.json` of bottleneck adapters. Components are attention_output, mlp_output, or both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BottleneckConfig {
    format_version: u32,
    method: BottleneckKind,
    layers: Vec<usize>,
    components: Vec<Component>,
    /// Inner size `m`.
    bottleneck_size: i64,
    /// `σ`.
    act_fn: Activation,
    #[serde(default, skip_serializing_if = "ActsOn::is_all")]
    tokens: ActsOn,
    base_model: BaseModel,
}

/// The input of a bottleneck adapter: the branch's output, or the branch's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BottleneckKind {
    Series,
    Parallel,
}

names!(BottleneckKind, "bottleneck adapter", reft_core::Error, {
    Series => "series-adapter",
    Parallel => "parallel-adapter",
});

const ACCEPTED: [Component; 2] = [Component::AttentionOutput, Component::MlpOutput];

impl TensorMethod for BottleneckConfig {
    const DECLARATION: &'static MethodDeclaration = &SERIES;
    type Constants = ();

    fn name(&self) -> &'static str {
        self.method.name()
    }

    fn decide(
        name: &str,
        options: &MethodOptions,
        model: &ModelDescription,
    ) -> crate::Result<Self> {
        Ok(Self {
            format_version: FORMAT_VERSION,
            method: name.parse()?,
            layers: options.layers_of(model.num_hidden_layers),
            components: options.components(),
            bottleneck_size: options.get(&BOTTLENECK_SIZE).unwrap_or(64),
            act_fn: options.get(&ACT_FN).unwrap_or(Activation::Relu),
            tokens: options.get(&TOKENS).unwrap_or_default(),
            base_model: BaseModel::of(model, ""),
        })
    }

    fn base_model(&mut self) -> Option<&mut BaseModel> {
        Some(&mut self.base_model)
    }

    fn acts_on(&self) -> ActsOn {
        self.tokens
    }

    fn parts(&self, model: &ModelDescription) -> crate::Result<Vec<Part<()>>> {
        check_positive("bottleneck_size", self.bottleneck_size)?;
        let branches = self.branches();
        branches.check(self.format_version, &ACCEPTED, &self.base_model, model)?;
        let (m, d) = (self.bottleneck_size, model.hidden_size);
        let part = |site: Site| {
            let spec =
                |name, shape: &[i64], start| TensorSpec::new(tensor_name(site, name), shape, start);
            let tensors = vec![
                spec("down.weight", &[m, d], Start::Uniform(d)),
                spec("down.bias", &[m], Start::Uniform(d)),
                spec("up.weight", &[d, m], Start::Zeros),
                spec("up.bias", &[d], Start::Zeros),
            ];
            // the input, and the input and output of the activation
            let keeps = Keeps { input: 0, numbers: d + 2 * m };
            Part { site: Some(site), constants: (), tensors, keeps }
        };
        Ok(branches.sites().map(part).collect())
    }

    fn hooks<'a>(&'a self, table: &'a Table<()>, _: &Layout, _: Mode) -> MadeHooks<'a> {
        Ok(Box::new(BottleneckHooks { config: self, table, input: None }))
    }
}

/// Concatenates the inner sizes of `U σ(D x + c) + e`, with `U` and `e` scaled by their strengths. Series adapters on one branch cannot be
/// joined: the second sees the output of the first, which no single adapter computes.
fn join(joint: &Joint, output: &Path) -> crate::Result<Joined> {
    let refuse = |reason: String| Err(crate::Error::from(Error::Adapter { reason }));
    let names = ["down.weight", "down.bias", "up.weight", "up.bias"];
    let parts = joint.branches::<BottleneckConfig>(&names)?;
    let first = &parts[0].config;
    joint.takes_no_rank(first.method.name())?;
    if let Some(other) = parts.iter().find(|part| part.config.act_fn != first.act_fn) {
        return refuse(format!(
            "the adapters have the activations {} and {}, and one adapter has one; use them as a stack",
            first.act_fn, other.config.act_fn
        ));
    }
    let (layers, components) = all_branches(parts.iter().map(|part| part.config.branches()));
    let mut config = BottleneckConfig { layers, components, ..first.clone() };
    let at = |site| parts.iter().filter(move |part| part.sites.contains_key(&site));
    let size_at = |site| at(site).map(|part| part.config.bottleneck_size).sum();
    config.bottleneck_size = config.branches().sites().map(size_at).max().unwrap_or(1);
    let (m, d) = (config.bottleneck_size, config.base_model.hidden_size);
    let zeros = |shape: [i64; 2]| Tensor::zeros(shape, (Kind::Double, Device::Cpu));
    let mut tensors = Vec::new();
    for site in config.branches().sites() {
        if config.method == BottleneckKind::Series && at(site).count() > 1 {
            return refuse(format!(
                "two series adapters stand behind {site}, and the second sees the output of the first: no single adapter computes that; use them as a stack"
            ));
        }
        // D [m, d], c [m], U [d, m] and e [d], filled up with zeros
        let rest = m - size_at(site);
        let (mut down, mut c, mut up) = (Vec::new(), Vec::new(), Vec::new());
        let mut e = zeros([1, d]).squeeze();
        for part in at(site) {
            let own = &part.sites[&site];
            down.push(own[names[0]].shallow_clone());
            c.push(own[names[1]].shallow_clone());
            up.push(&own[names[2]] * part.strength);
            e += &own[names[3]] * part.strength;
        }
        down.push(zeros([rest, d]));
        c.push(zeros([rest, 1]).flatten(0, 1));
        up.push(zeros([d, rest]));
        let whole = [Tensor::cat(&down, 0), Tensor::cat(&c, 0), Tensor::cat(&up, 1), e];
        tensors.extend(names.iter().zip(whole).map(|(name, t)| (tensor_name(site, name), t)));
    }
    joint.write(&config, &tensors, output)
}

impl BottleneckConfig {
    fn branches(&self) -> Branches<'_> {
        Branches { layers: &self.layers, components: &self.components }
    }
}

impl BranchMethod for BottleneckConfig {
    fn sites(&self) -> Vec<Site> {
        self.branches().sites().collect()
    }
}

/// The adapters in one forward.
struct BottleneckHooks<'a> {
    config: &'a BottleneckConfig,
    table: &'a Table<()>,
    input: Option<(Site, Tensor)>, // for parallel adapters: the input of the present branch
}

impl BottleneckHooks<'_> {
    /// Remembers the input of a branch that has a parallel adapter.
    fn see_input(&mut self, site: Site, x: &Tensor) {
        // attention and the MLP begin with these projections; of gate and up the first counts
        let component = match site.component {
            Component::Query | Component::QueryKeyValue => Component::AttentionOutput,
            Component::Gate | Component::GateUp | Component::Up => Component::MlpOutput,
            _ => return,
        };
        let branch = Site { layer: site.layer, component };
        let is_parallel = self.config.method == BottleneckKind::Parallel;
        let is_seen = self.input.as_ref().is_some_and(|(seen, _)| *seen == branch);
        if is_parallel && !is_seen && self.table.at(branch).is_some() {
            self.input = Some((branch, x.shallow_clone()));
        }
    }
}

impl Hooks for BottleneckHooks<'_> {
    fn visit(&mut self, point: HookPoint, h: Tensor, _span: &Span) -> Result<Tensor> {
        let site = match point {
            HookPoint::Residual(site) => site,
            HookPoint::Input(site) => {
                self.see_input(site, &h);
                return Ok(h);
            }
            _ => return Ok(h),
        };
        let Some((_, [down, c, up, e])) = self.table.at(site) else { return Ok(h) };
        let x = match self.config.method {
            BottleneckKind::Series => h.shallow_clone(),
            BottleneckKind::Parallel => match self.input.take() {
                Some((branch, x)) if branch == site => x,
                _ => {
                    let reason = format!("the input of the branch at {site} was not seen");
                    return Err(Error::Adapter { reason });
                }
            },
        };
        let inner = x.to_kind(Kind::Float).linear(down, Some(c)); // D x + c [b, t, m]
        let inner = self.config.act_fn.apply(inner);
        Ok((&h + inner.linear(up, Some(e))).to_kind(h.kind())) // [b, t, d]
    }
}
