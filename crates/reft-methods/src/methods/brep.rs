use reft_models::{BaseModel, Component, Error, Layout, Mode, ModelDescription, Site};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::files::own_config::{Branches, FORMAT_VERSION, tensor_name};
use crate::methods::red::ScaleAndShift;
use crate::{
    ActsOn, AdapterFiles, COMPONENTS, Joining, Keeps, LAYERS, MadeHooks, Merging,
    MethodDeclaration, MethodOption, MethodOptions, Part, Start, TOKENS, Table, TensorMethod,
    TensorSpec, ValueKind, read_config, resolve_config,
};

/// BREP, bias-restrained prefix representation fine-tuning: `y ← l ⊙ y + b` on the output of a projection, with a short `b`.
///
/// Liang et al. 2025 (arXiv:2511.10707): RED's scale and bias on a projection of every layer, the MLP's up projection in LiangThree/BREP, trained
/// on the first tokens of replies. Long biases disturb how numbers are encoded, and so does an edit late in a reply. `l` starts at 1 and `b` at
/// 0, so training begins from the base model.
///
/// **The bound is ours**: `b · min(1, τ/‖b‖)` stands in place of `b`, so no bias is longer than `τ`. The authors steer the mean length of the
/// biases towards `0.8 τ` by a PID controller on a factor of the loss, a force that AdamW, which divides by the gradient's size, hardly feels.
pub(crate) const BREP: MethodDeclaration = MethodDeclaration {
    name: "brep",
    title: "BREP",
    equation: "y ← l ⊙ y + b · min(1, τ/‖b‖)",
    source: "Liang et al. 2025, arXiv:2511.10707",
    options: &[&LAYERS, &COMPONENTS, &MAX_BIAS_NORM, &TOKENS],
    files: AdapterFiles::Own,
    merging: Merging::Never(
        "it scales and shifts the outputs of projections, and they have no bias for it",
    ),
    joining: Joining::Never("bounded biases do not add up to one; use the adapters as a stack"),
    acts_on_generated: true,
    per_row: true,
    usual_lr: 1e-3,
    resolve: resolve_config::<BrepConfig>,
    read: read_config::<BrepConfig>,
};

static MAX_BIAS_NORM: MethodOption = MethodOption {
    name: "max_bias_norm",
    value: ValueKind::Number,
    value_name: "X",
    heading: "Method: BREP",
    help: "Longest bias of a projection",
    default: "1",
    alias: None,
};

/// `baseline_config.json` of BREP. Components are projections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BrepConfig {
    format_version: u32,
    method: String,
    layers: Vec<usize>,
    components: Vec<Component>,
    max_bias_norm: f64,
    #[serde(default, skip_serializing_if = "ActsOn::is_all")]
    tokens: ActsOn,
    base_model: BaseModel,
}

impl TensorMethod for BrepConfig {
    const DECLARATION: &'static MethodDeclaration = &BREP;
    type Constants = ();

    fn decide(_: &str, options: &MethodOptions, model: &ModelDescription) -> crate::Result<Self> {
        let has = |own: &Component| model.projection_name(*own).is_some();
        let up = || [Component::Up, Component::GateUp].into_iter().filter(has).take(1).collect();
        Ok(Self {
            format_version: FORMAT_VERSION,
            method: BREP.name.to_owned(),
            layers: options.layers_of(model.num_hidden_layers),
            components: options.get(&COMPONENTS).unwrap_or_else(up),
            max_bias_norm: options.get(&MAX_BIAS_NORM).unwrap_or(1.0),
            tokens: options.get(&TOKENS).unwrap_or_default(),
            base_model: BaseModel::of(model, ""),
        })
    }

    fn check(&self) -> crate::Result<()> {
        let bound = self.max_bias_norm;
        if bound.is_finite() && bound > 0.0 {
            return Ok(());
        }
        Err(MAX_BIAS_NORM.refuse(bound.to_string(), "a number above 0"))
    }

    fn base_model(&mut self) -> Option<&mut BaseModel> {
        Some(&mut self.base_model)
    }

    fn acts_on(&self) -> ActsOn {
        self.tokens
    }

    fn parts(&self, model: &ModelDescription) -> crate::Result<Vec<Part<()>>> {
        let projections = model.projections();
        let accepted: Vec<Component> = Component::PROJECTIONS
            .into_iter()
            .filter(|own| projections.iter().any(|p| p.site.component == *own))
            .collect();
        let branches = Branches { layers: &self.layers, components: &self.components };
        branches.check(self.format_version, &accepted, &self.base_model, model)?;
        let part = |site: Site| {
            let own = projections.iter().find(|p| p.site == site).ok_or_else(|| {
                let reason = format!("layer {} has no {}", site.layer, site.component);
                Error::Adapter { reason }
            })?;
            let d = own.out_features;
            let scale = TensorSpec::new(tensor_name(site, "scale"), [d], Start::Ones);
            let bias = TensorSpec::new(tensor_name(site, "bias"), [d], Start::Zeros);
            let tensors = vec![scale.without_decay(), bias];
            let keeps = Keeps { input: 0, numbers: d };
            Ok(Part { site: Some(site), constants: (), tensors, keeps })
        };
        branches.sites().map(part).collect()
    }

    fn hooks<'a>(&'a self, table: &'a Table<()>, _: &Layout, _: Mode) -> MadeHooks<'a> {
        let bounded = |(site, own): (Site, &[Tensor])| {
            (site, [own[0].shallow_clone(), within(&own[1], self.max_bias_norm)])
        };
        Ok(Box::new(ScaleAndShift::new(table.sites().map(bounded))))
    }
}

/// The bounded bias, `b · min(1, τ/‖b‖)`.
fn within(bias: &Tensor, bound: f64) -> Tensor {
    bias * (bound / bias.norm().clamp_min(bound))
}
