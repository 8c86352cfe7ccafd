use std::collections::BTreeMap;
use std::path::Path;

use reft_core::{ConstantEdit, Intervention, Removal, Subspace, names};
use reft_models::{
    Adapter, BaseModel, Component, Error, HookPoint, Hooks, Layout, Mode, Model, ModelDescription,
    Result, Site, Span, load_safetensors,
};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::files::adapter_file::{self, Beside};
use crate::files::own_config::{Branches, FORMAT_VERSION, tensor_name};
use crate::joined_tables::{BranchMethod, all_branches};
use crate::{
    ActsOn, AdapterFiles, COMPONENT, Joined, Joining, Joint, Keeps, LAYERS, MadeHooks, Merging,
    Method, MethodDeclaration, MethodOption, MethodOptions, Part, Start, TOKENS, Table,
    TensorMethod, TensorSpec, ValueKind, read_config, read_own, resolve_config,
};

/// Steering: a direction is added to the hidden states of a site, `h ← h + v`, or removed from them, `h ← h − v̂ v̂ᵀ h` with `v̂ = v/‖v‖`.
///
/// The direction comes from texts (`reft steer`), an alignment search, a control vector, or training: with the objectives of ReFT-r1 and
/// RePS, or any other. Training starts it at random, as AxBench does (Wu et al. 2025, arXiv:2501.17148).
pub(crate) const STEERING: MethodDeclaration = MethodDeclaration {
    name: NAME,
    title: "Steering",
    equation: "h + v, or h − v̂ v̂ᵀ h",
    source: "Turner et al. 2023, arXiv:2308.10248; Arditi et al. 2024, arXiv:2406.11717",
    options: &[&LAYERS, &COMPONENT, &TOKENS, &EDIT],
    files: AdapterFiles::Own,
    merging: Merging::Never("it changes hidden states, and the blocks have no bias for it"),
    joining: Joining::Exactly {
        with: &[NAME],
        how: "layers together; directions of one layer are added up",
        needs_weights: false,
        join,
    },
    acts_on_generated: true,
    per_row: true,
    usual_lr: 2e-2,
    resolve: resolve_config::<SteeringConfig>,
    read: read_config::<SteeringConfig>,
};

const NAME: &str = "steering";

/// The tensor of a site: the direction that is added.
const DIRECTION: &str = "direction";

/// The tensor of a site: the direction that is removed.
const REMOVED: &str = "removed_direction";

static EDIT: MethodOption = MethodOption {
    name: "edit",
    value: ValueKind::Name(&["add", "remove"]),
    value_name: "EDIT",
    heading: "Method: steering",
    help: "Edit by the direction: add it, or remove the hidden state's part along it",
    default: "add",
    alias: None,
};

/// The edit that a direction makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SteeringEdit {
    /// `h + v`
    #[default]
    Add,
    /// `h − v̂ v̂ᵀ h`
    Remove,
}

names!(SteeringEdit, "edit", reft_core::Error, { Add => "add", Remove => "remove" });

/// `baseline_config.json` of steering.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SteeringConfig {
    format_version: u32,
    method: String,
    edit: SteeringEdit,
    layers: Vec<usize>,
    component: Component,
    #[serde(default, skip_serializing_if = "ActsOn::is_all")]
    tokens: ActsOn,
    base_model: BaseModel,
    /// The directions that it starts from, `[d]` each, by layer; `None` to start at random.
    #[serde(skip)]
    directions: Option<BTreeMap<usize, Tensor>>,
}

impl Clone for SteeringConfig {
    fn clone(&self) -> Self {
        let copy = |(layer, v): (&usize, &Tensor)| (*layer, v.shallow_clone());
        Self {
            method: self.method.clone(),
            layers: self.layers.clone(),
            base_model: self.base_model.clone(),
            directions: self.directions.as_ref().map(|all| all.iter().map(copy).collect()),
            ..*self
        }
    }
}

/// The components that can be steered.
const COMPONENTS_OF_STEERING: [Component; 4] = [
    Component::BlockInput,
    Component::AttentionOutput,
    Component::MlpOutput,
    Component::BlockOutput,
];

impl TensorMethod for SteeringConfig {
    const DECLARATION: &'static MethodDeclaration = &STEERING;
    type Constants = ();

    fn decide(_: &str, options: &MethodOptions, model: &ModelDescription) -> crate::Result<Self> {
        Ok(Self {
            format_version: FORMAT_VERSION,
            method: NAME.to_owned(),
            edit: options.get(&EDIT).unwrap_or_default(),
            layers: options.layers_of(model.num_hidden_layers),
            component: options.get(&COMPONENT).unwrap_or(Component::BlockOutput),
            tokens: options.get(&TOKENS).unwrap_or_default(),
            base_model: BaseModel::of(model, ""),
            directions: None,
        })
    }

    fn base_model(&mut self) -> Option<&mut BaseModel> {
        Some(&mut self.base_model)
    }

    fn acts_on(&self) -> ActsOn {
        self.tokens
    }

    fn parts(&self, model: &ModelDescription) -> crate::Result<Vec<Part<()>>> {
        let component = [self.component];
        let branches = self.branches(&component);
        branches.check(self.format_version, &COMPONENTS_OF_STEERING, &self.base_model, model)?;
        let d = model.hidden_size;
        let part = |site: Site| {
            let known = self.directions.as_ref().and_then(|all| all.get(&site.layer));
            let start = match known.map(Tensor::shallow_clone) {
                Some(v) => Start::FromModel(Box::new(move |_| Ok(v.shallow_clone()))),
                None => Start::Uniform(d),
            };
            let (tensor, numbers) = match self.edit {
                SteeringEdit::Add => (DIRECTION, 0),
                SteeringEdit::Remove => (REMOVED, d),
            };
            Part {
                site: Some(site),
                constants: (),
                tensors: vec![TensorSpec::new(tensor_name(site, tensor), [d], start)],
                keeps: Keeps { input: 0, numbers },
            }
        };
        Ok(branches.sites().map(part).collect())
    }

    fn hooks<'a>(&'a self, table: &'a Table<()>, _: &Layout, _: Mode) -> MadeHooks<'a> {
        SteeringHooks::of(table, |v| match self.edit {
            SteeringEdit::Add => Ok(Box::new(ConstantEdit::adding(v)?)),
            SteeringEdit::Remove => Ok(Box::new(Removal::of(v)?)),
        })
    }

    fn away<'a>(&'a self, table: &'a Table<()>) -> Option<MadeHooks<'a>> {
        let removes =
            |v: &Tensor| -> reft_core::Result<BoxedEdit> { Ok(Box::new(Removal::towards(v)?)) };
        (self.edit == SteeringEdit::Add).then(|| SteeringHooks::of(table, removes))
    }

    fn directions(&self, table: &Table<()>) -> Option<BTreeMap<Site, Tensor>> {
        let of_sites = || table.sites().map(|(site, own)| (site, own[0].shallow_clone())).collect();
        (self.edit == SteeringEdit::Add).then(of_sites)
    }
}

impl SteeringConfig {
    fn branches<'a>(&'a self, component: &'a [Component]) -> Branches<'a> {
        Branches { layers: &self.layers, components: component }
    }
}

impl BranchMethod for SteeringConfig {
    fn sites(&self) -> Vec<Site> {
        self.branches(&[self.component]).sites().collect()
    }
}

/// An adapter that steers along directions `[d]` at some layers of one component.
///
/// # Errors
/// [`Error::Adapter`] for a direction that does not have the model's hidden size, is not finite or has length 0; without directions; for a
/// layer that the model does not have.
pub fn steering_adapter(
    directions: &BTreeMap<usize, Tensor>,
    component: Component,
    edit: SteeringEdit,
    model: &dyn Model,
    base_model: &str,
) -> crate::Result<Box<dyn Adapter>> {
    let d = model.description().hidden_size;
    for (layer, v) in directions {
        let reason = match v.size()[..] {
            [size] if size == d => {
                let norm = v.to_kind(Kind::Float).norm().double_value(&[]);
                if norm.is_finite() && norm > 0.0 {
                    continue;
                }
                format!(
                    "the direction of layer {layer} has length {norm}, expected a number above 0"
                )
            }
            ref size => format!(
                "the direction of layer {layer} has shape {size:?}, the model's hidden states have size {d}"
            ),
        };
        return Err(Error::Adapter { reason }.into());
    }
    let options = MethodOptions::default()
        .with(&LAYERS, directions.keys().collect::<Vec<_>>())
        .with(&COMPONENT, component)
        .with(&EDIT, edit);
    let directions = directions.iter().map(|(layer, v)| (*layer, v.shallow_clone())).collect();
    let config = SteeringConfig::decide(NAME, &options, model.description())?;
    Method::build(&SteeringConfig { directions: Some(directions), ..config }, model, base_model)
}

/// Directions `[d]` by their sites, and the base model that they belong to.
pub(crate) type KeptDirections = (BTreeMap<Site, Tensor>, BaseModel);

/// The directions of the adapter in a directory, by site, and its base model. The inner error says why it does not add directions at every
/// token.
pub(crate) fn kept_directions(
    dir: &Path,
) -> crate::Result<std::result::Result<KeptDirections, String>> {
    let config = read_own::<SteeringConfig>(dir)?;
    if config.edit == SteeringEdit::Remove {
        return Ok(Err("it takes a direction out, which depends on the hidden states".to_owned()));
    }
    if config.tokens != ActsOn::All {
        return Ok(Err(format!(
            "it acts on the tokens {}, a control vector on all",
            config.tokens
        )));
    }
    let tensors = load_safetensors(&dir.join(STEERING.files.tensors()))?;
    let mut directions = BTreeMap::new();
    for site in config.sites() {
        let name = tensor_name(site, DIRECTION);
        let Some(v) = tensors.get(&name) else {
            let reason = format!("{}: {name} is missing", dir.display());
            return Err(Error::Adapter { reason }.into());
        };
        directions.insert(site, v.shallow_clone());
    }
    Ok(Ok((directions, config.base_model)))
}

/// Writes directions that are added at block outputs as an adapter, into a directory that exists.
pub(crate) fn write_steering(
    directions: &BTreeMap<usize, Tensor>,
    base_model: BaseModel,
    dir: &Path,
) -> crate::Result<()> {
    let config = SteeringConfig {
        format_version: FORMAT_VERSION,
        method: NAME.to_owned(),
        edit: SteeringEdit::Add,
        layers: directions.keys().copied().collect(),
        component: Component::BlockOutput,
        tokens: ActsOn::All,
        base_model: base_model.clone(),
        directions: None,
    };
    let tensors = config
        .sites()
        .into_iter()
        .map(|site| (tensor_name(site, DIRECTION), directions[&site.layer].shallow_clone()));
    let beside = Beside { base_model: Some(&base_model), ..Beside::default() };
    Ok(adapter_file::write(STEERING.files, dir, &config, tensors.collect(), beside)?)
}

/// Adds directions up, each at its strength.
fn join(joint: &Joint, output: &Path) -> crate::Result<Joined> {
    joint.takes_no_rank(NAME)?;
    let refuse = |reason: &str| Err(Error::Adapter { reason: reason.to_owned() }.into());
    for part in &joint.parts {
        if read_own::<SteeringConfig>(&part.directory)?.edit == SteeringEdit::Remove {
            return refuse("removals of directions do not add up; use the adapters as a stack");
        }
    }
    let parts = joint.branches::<SteeringConfig>(&[DIRECTION])?;
    let components = parts.iter().map(|part| [part.config.component]).collect::<Vec<_>>();
    let branches = parts.iter().zip(&components);
    let (layers, components) =
        all_branches(branches.map(|(part, component)| part.config.branches(component)));
    let [component] = components[..] else {
        return refuse("the adapters steer at different components; use them as a stack");
    };
    let config = SteeringConfig { layers, component, ..parts[0].config.clone() };
    let sum = |site: Site| {
        let own = parts.iter().filter_map(|part| Some((part, part.sites.get(&site)?)));
        let own = own.map(|(part, tensors)| &tensors[DIRECTION] * part.strength);
        let sum = own.reduce(|sum, v| sum + v).expect("invariant: a layer of one of the parts");
        (tensor_name(site, DIRECTION), sum)
    };
    let tensors: Vec<_> = config.sites().into_iter().map(sum).collect();
    joint.write(&config, &tensors, output)
}

type BoxedEdit = Box<dyn Intervention>;

/// The edits in one forward.
struct SteeringHooks(BTreeMap<Site, BoxedEdit>);

impl SteeringHooks {
    fn of<'a>(
        table: &'a Table<()>,
        edit: impl Fn(&Tensor) -> reft_core::Result<BoxedEdit>,
    ) -> MadeHooks<'a> {
        let of_site = |(site, tensors): (Site, &[Tensor])| Ok((site, edit(&tensors[0])?));
        let edits: Result<_> = table.sites().map(of_site).collect();
        Ok(Box::new(Self(edits?)))
    }
}

impl Hooks for SteeringHooks {
    fn touches(&self, point: HookPoint, _span: &Span) -> bool {
        matches!(point, HookPoint::Residual(site) if self.0.contains_key(&site))
    }

    fn visit(&mut self, point: HookPoint, h: Tensor, _span: &Span) -> Result<Tensor> {
        let HookPoint::Residual(site) = point else { return Ok(h) };
        let Some(edit) = self.0.get(&site) else { return Ok(h) };
        Ok(edit.intervene(&h, &Subspace::Whole)?)
    }
}
