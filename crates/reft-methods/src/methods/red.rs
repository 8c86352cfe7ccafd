use std::collections::BTreeMap;
use std::path::Path;

use reft_models::{
    BaseModel, Component, HookPoint, Hooks, Layout, Mode, ModelDescription, Result, Site, Span,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::files::own_config::{Branches, FORMAT_VERSION, tensor_name};
use crate::joined_tables::{BranchMethod, all_branches};
use crate::{
    ActsOn, AdapterFiles, COMPONENTS, Joined, Joining, Joint, Keeps, LAYERS, MadeHooks, Merging,
    MethodDeclaration, MethodOptions, Part, Start, TOKENS, Table, TensorMethod, TensorSpec,
    read_config, resolve_config,
};

/// RED, representation editing: `h ← l ⊙ h + b` at every token.
///
/// Wu et al. 2024 (arXiv:2402.15179): one scaling and one bias vector per layer, on the output of the MLP (or on
/// the block's output). `l` starts at 1 and `b` at 0, so training begins from the base model.
pub(crate) const RED: MethodDeclaration = MethodDeclaration {
    name: "red",
    title: "RED",
    equation: "h ← l ⊙ h + b",
    source: "Wu et al. 2024, arXiv:2402.15179",
    options: &[&LAYERS, &COMPONENTS, &TOKENS],
    files: AdapterFiles::Own,
    merging: Merging::Never(
        "it scales and shifts hidden states, and the blocks have no bias for it",
    ),
    joining: Joining::Exactly {
        with: &["red"],
        how: "layers and components together; scales and biases one after the other",
        needs_weights: false,
        join,
    },
    acts_on_generated: true,
    per_row: true,
    usual_lr: 1e-3,
    resolve: resolve_config::<RedConfig>,
    read: read_config::<RedConfig>,
};

/// `baseline_config.json` of RED. Components are mlp_output, block_output, or both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RedConfig {
    format_version: u32,
    method: String,
    layers: Vec<usize>,
    components: Vec<Component>,
    #[serde(default, skip_serializing_if = "ActsOn::is_all")]
    tokens: ActsOn,
    base_model: BaseModel,
}

/// Where RED can stand.
const COMPONENTS_OF_RED: [Component; 2] = [Component::MlpOutput, Component::BlockOutput];

impl TensorMethod for RedConfig {
    const DECLARATION: &'static MethodDeclaration = &RED;
    type Constants = ();

    fn decide(_: &str, options: &MethodOptions, model: &ModelDescription) -> crate::Result<Self> {
        Ok(Self {
            format_version: FORMAT_VERSION,
            method: RED.name.to_owned(),
            layers: options.layers_of(model.num_hidden_layers),
            components: options.components(),
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
        let branches = self.branches();
        branches.check(self.format_version, &COMPONENTS_OF_RED, &self.base_model, model)?;
        let part = |site: Site| {
            let d = [model.hidden_size];
            let scale = TensorSpec::new(tensor_name(site, "scale"), d, Start::Ones);
            let bias = TensorSpec::new(tensor_name(site, "bias"), d, Start::Zeros);
            let tensors = vec![scale.without_decay(), bias];
            let keeps = Keeps { input: 0, numbers: model.hidden_size };
            Part { site: Some(site), constants: (), tensors, keeps }
        };
        Ok(branches.sites().map(part).collect())
    }

    fn hooks<'a>(&'a self, table: &'a Table<()>, _: &Layout, _: Mode) -> MadeHooks<'a> {
        let own = |(site, own): (Site, &[Tensor])| (site, [0, 1].map(|i| own[i].shallow_clone()));
        Ok(Box::new(ScaleAndShift::new(table.sites().map(own))))
    }
}

/// Composes scales and biases in order, each at its strength: `(1 + s (l − 1)) ⊙ h + s b`. Without the site, `l` is 1 and `b` 0.
fn join(joint: &Joint, output: &Path) -> crate::Result<Joined> {
    joint.takes_no_rank(RED.name)?;
    let parts = joint.branches::<RedConfig>(&["scale", "bias"])?;
    let (layers, components) = all_branches(parts.iter().map(|part| part.config.branches()));
    let config = RedConfig { layers, components, ..parts[0].config.clone() };
    let d = config.base_model.hidden_size;
    let mut tensors = Vec::new();
    for site in config.branches().sites() {
        let options = (Kind::Double, Device::Cpu);
        let (mut scale, mut bias) = (Tensor::ones([d], options), Tensor::zeros([d], options));
        for part in &parts {
            let Some(own) = part.sites.get(&site) else { continue };
            let l = (&own["scale"] - 1.0) * part.strength + 1.0;
            bias = &l * bias + &own["bias"] * part.strength;
            scale *= l;
        }
        tensors.push((tensor_name(site, "scale"), scale));
        tensors.push((tensor_name(site, "bias"), bias));
    }
    joint.write(&config, &tensors, output)
}

impl RedConfig {
    fn branches(&self) -> Branches<'_> {
        Branches { layers: &self.layers, components: &self.components }
    }
}

impl BranchMethod for RedConfig {
    fn sites(&self) -> Vec<Site> {
        self.branches().sites().collect()
    }
}

/// Scales and biases in one forward: `l ⊙ h + b` at sites of the residual stream, or of projections' outputs.
pub(crate) struct ScaleAndShift(BTreeMap<Site, [Tensor; 2]>);

impl ScaleAndShift {
    /// `l` and `b` of some sites, `[d]` each.
    pub(crate) fn new(sites: impl Iterator<Item = (Site, [Tensor; 2])>) -> Self {
        Self(sites.collect())
    }

    fn at(&self, point: HookPoint) -> Option<&[Tensor; 2]> {
        match point {
            HookPoint::Residual(site) | HookPoint::Output(site, ..) => self.0.get(&site),
            _ => None,
        }
    }
}

impl Hooks for ScaleAndShift {
    fn touches(&self, point: HookPoint, _span: &Span) -> bool {
        self.at(point).is_some()
    }

    fn visit(&mut self, point: HookPoint, h: Tensor, _span: &Span) -> Result<Tensor> {
        let Some([scale, bias]) = self.at(point) else { return Ok(h) };
        Ok((&h * scale + bias).to_kind(h.kind())) // l ⊙ h + b [b, t, d]
    }
}
