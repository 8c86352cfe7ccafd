//! Methods whose adapter is a configuration and a table of trained tensors. The table is made, read, checked, trained, saved and merged here,
//! for all of them.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

use reft_core::Parameter;
use reft_models::{
    Adapter, BaseModel, Fields, Hooks, Layout, Mode, Model, ModelDescription, OnPrompt, Placement,
    Reach, Row, Site, TaskHead, TrainedText, Weight, read_json,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};

use crate::files::adapter_file::{self, Beside, Shapes};
use crate::files::peft_fields::OtherFields;
use crate::target_modules::share_an_input;
use crate::{
    ActsOn, Error, MergedWeights, Merging, Method, MethodDeclaration, MethodOptions, Result,
    TargetModules,
};

/// A method with all options set: the configuration that its adapters' files hold.
pub(crate) trait TensorMethod:
    Debug + Clone + Serialize + DeserializeOwned + 'static
{
    /// Its declaration; of several that share a configuration, the first.
    const DECLARATION: &'static MethodDeclaration;

    /// The constants of a part, beside its tensors: names, scalings.
    type Constants: Debug;

    /// Its name, as on the command line.
    fn name(&self) -> &'static str {
        Self::DECLARATION.name
    }

    /// Fills in the options that are not given, for the method of this name; [`Self::parts`] checks them.
    fn decide(name: &str, options: &MethodOptions, model: &ModelDescription) -> Result<Self>;

    /// All of its options.
    fn options(&self) -> MethodOptions {
        MethodOptions::of_config(Self::DECLARATION.options, self)
    }

    /// Checks everything that needs no model.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// If its file is PEFT's: the known fields, and the fields found that it does not use itself.
    fn other(&self) -> Option<(&'static Fields, &OtherFields)> {
        None
    }

    /// The modules that it works on, if it works on modules by name.
    fn target_modules(&mut self) -> Option<&mut TargetModules> {
        None
    }

    /// Whether it can become part of the weights.
    fn merging(&self) -> Merging {
        Self::DECLARATION.merging
    }

    /// The identity of its base model, if the configuration has a place for it.
    fn base_model(&mut self) -> Option<&mut BaseModel> {
        None
    }

    /// The tokens that it acts on, if it stands on modules or sites.
    fn acts_on(&self) -> ActsOn {
        ActsOn::All
    }

    /// The table of its tensors, in the order of their start. A configuration that does not fit the model is refused.
    fn parts(&self, model: &ModelDescription) -> Result<Vec<Part<Self::Constants>>>;

    /// The form for an adapter read from a file: its table is the file's.
    fn into_read(self) -> Self {
        self
    }

    /// The tensors of the file, made of the trained ones.
    fn saved(&self, table: &Table<Self::Constants>) -> Vec<(String, Tensor)> {
        table.parameters.iter().map(|p| (p.name.clone(), p.tensor.shallow_clone())).collect()
    }

    /// The hooks for one forward over a batch.
    fn hooks<'a>(
        &'a self,
        table: &'a Table<Self::Constants>,
        layout: &Layout,
        mode: Mode,
    ) -> MadeHooks<'a>;

    /// The hooks that turn away from its concept, if it has some; see [`Adapter::away`].
    fn away<'a>(&'a self, _table: &'a Table<Self::Constants>) -> Option<MadeHooks<'a>> {
        None
    }

    /// The directions that it adds to hidden states, if it does so; see [`Adapter::directions`].
    fn directions(&self, _table: &Table<Self::Constants>) -> Option<BTreeMap<Site, Tensor>> {
        None
    }

    /// Number of virtual tokens that stand before every prompt.
    fn virtual_tokens(&self) -> usize {
        0
    }

    /// Number of keys and values that stand before every layer's own.
    fn prefix_length(&self) -> usize {
        0
    }

    /// Puts a part into the weights.
    fn merge(&self, _: &Self::Constants, _: &[Tensor], _: &MergedWeights) -> Result<()> {
        Ok(())
    }
}

/// Hooks, or the error of making them for a batch.
pub(crate) type MadeHooks<'a> = reft_models::Result<Box<dyn Hooks + 'a>>;

/// The plan of a part of a table: the tensors of a site, or of no site.
pub(crate) struct Part<C> {
    pub(crate) site: Option<Site>,
    pub(crate) constants: C,
    pub(crate) tensors: Vec<TensorSpec>,
    pub(crate) keeps: Keeps,
}

/// Numbers per token that the backward of a part keeps, in f32.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Keeps {
    /// Size of the projection's input, if it is kept. In f32, projections with the same input share one tensor; in half precision each keeps
    /// a copy.
    pub(crate) input: i64,
    /// Other numbers.
    pub(crate) numbers: i64,
}

/// The plan of a tensor.
pub(crate) struct TensorSpec {
    name: String,
    shape: Vec<i64>,
    start: Start,
    decays: bool,
}

/// Makes a tensor's start from the model.
pub(crate) type StartFromModel = Box<dyn Fn(&dyn Model) -> reft_models::Result<Tensor>>;

/// How a tensor starts. Random numbers are drawn on the CPU, so that every device starts alike.
pub(crate) enum Start {
    Zeros,
    Ones,
    /// Uniform in ±1/√n, as `torch.nn.Linear` starts with n inputs.
    Uniform(i64),
    /// Normal with mean 0 and variance 1, as `torch.nn.Embedding` starts.
    Normal,
    /// Made from the model.
    FromModel(StartFromModel),
}

impl TensorSpec {
    /// A tensor with its name in the adapter's file.
    pub(crate) fn new(name: impl Into<String>, shape: impl Into<Vec<i64>>, start: Start) -> Self {
        Self { name: name.into(), shape: shape.into(), start, decays: true }
    }

    /// Exempts it from weight decay, which would pull it to 0 and not to the base model.
    pub(crate) fn without_decay(self) -> Self {
        Self { decays: false, ..self }
    }

    fn make(&self, model: &dyn Model) -> reft_models::Result<Tensor> {
        let (shape, options) = (&self.shape[..], (Kind::Float, Device::Cpu));
        Ok(match &self.start {
            Start::Zeros => Tensor::zeros(shape, options),
            Start::Ones => Tensor::ones(shape, options),
            Start::Uniform(n) => {
                let bound = 1.0 / (*n as f64).sqrt();
                Tensor::empty(shape, options).uniform_(-bound, bound)
            }
            Start::Normal => Tensor::randn(shape, options),
            Start::FromModel(start) => start(model)?,
        })
    }
}

/// The trained tensors of an adapter, in f32 for every kind of model: half precision would round an optimizer's small steps away. Tensors of a
/// site are on the device of the site's stage.
#[derive(Debug)]
pub(crate) struct Table<C> {
    /// By site; the tensors of each in the order of [`Part::tensors`].
    parts: BTreeMap<Option<Site>, (C, Vec<Tensor>)>,
    parameters: Vec<Parameter>,
}

impl<C> Table<C> {
    fn make(
        parts: Vec<Part<C>>,
        placement: &Placement,
        tensor: &dyn Fn(&TensorSpec) -> reft_models::Result<Tensor>,
    ) -> Result<Self> {
        let mut table = Self { parts: BTreeMap::new(), parameters: Vec::new() };
        for Part { site, constants, tensors, .. } in parts {
            let (mut leaves, device) = (Vec::new(), placement.device_of(site));
            for spec in tensors {
                let start = tensor(&spec)?.detach().to_kind(Kind::Float).to_device(device);
                let leaf = start.copy().set_requires_grad(true);
                let parameter = Parameter::new(spec.name, &leaf);
                table.parameters.push(Parameter { weight_decay: spec.decays, ..parameter });
                leaves.push(leaf);
            }
            table.parts.insert(site, (constants, leaves));
        }
        Ok(table)
    }

    /// Constants and tensors at a site.
    pub(crate) fn at(&self, site: Site) -> Option<(&C, &[Tensor])> {
        self.parts.get(&Some(site)).map(|(constants, tensors)| (constants, &tensors[..]))
    }

    /// The tensors of every site.
    pub(crate) fn sites(&self) -> impl Iterator<Item = (Site, &[Tensor])> {
        self.parts.iter().filter_map(|(site, (_, tensors))| Some(((*site)?, &tensors[..])))
    }

    /// The tensors that belong to no site.
    pub(crate) fn tensors(&self) -> &[Tensor] {
        self.parts.get(&None).map_or(&[], |(_, tensors)| tensors)
    }
}

/// Tensors of heads by name.
type Heads = Vec<(String, Tensor)>;

/// An adapter that is a table of trained tensors.
#[derive(Debug)]
struct TensorAdapter<M: TensorMethod> {
    method: M,
    base_model: BaseModel,
    text: Option<TrainedText>,
    table: Table<M::Constants>,
    /// Tensors of its file that belong to a task's head, by name: kept for models with the head.
    heads: Heads,
    /// The head that is trained with it and replaces its file's.
    head: Option<TaskHead>,
    /// The prefix of modules' names in a model with the head.
    prefix: Option<&'static str>,
}

impl<M: TensorMethod> TensorAdapter<M> {
    /// Restricts hooks to the tokens that it acts on.
    fn on_tokens<'a>(&self, hooks: Box<dyn Hooks + 'a>, layout: &Layout) -> Box<dyn Hooks + 'a> {
        match self.method.acts_on() {
            ActsOn::All => hooks,
            ActsOn::Prompt => Box::new(OnPrompt::new(hooks, layout)),
        }
    }
}

impl<M: TensorMethod> Adapter for TensorAdapter<M> {
    fn method(&self) -> &str {
        self.method.name()
    }

    fn parameters(&self) -> Vec<Parameter> {
        let again = |p: &Parameter| Parameter {
            weight_decay: p.weight_decay,
            ..Parameter::new(p.name.clone(), &p.tensor)
        };
        self.table.parameters.iter().map(again).collect()
    }

    fn hooks<'a>(&'a self, layout: &Layout, mode: Mode) -> MadeHooks<'a> {
        Ok(self.on_tokens(self.method.hooks(&self.table, layout, mode)?, layout))
    }

    fn away<'a>(&'a self, layout: &Layout) -> Option<MadeHooks<'a>> {
        let hooks = self.method.away(&self.table)?;
        Some(hooks.map(|hooks| self.on_tokens(hooks, layout)))
    }

    fn directions(&self) -> Option<BTreeMap<Site, Tensor>> {
        self.method.directions(&self.table)
    }

    /// Prefixes and virtual tokens act on the prompt only: after the prefill they are in the cache.
    fn acts_on_replies(&self) -> bool {
        self.method.virtual_tokens() + self.method.prefix_length() == 0
            && self.method.acts_on() == ActsOn::All
    }

    fn virtual_tokens(&self) -> usize {
        self.method.virtual_tokens()
    }

    fn prefix_length(&self) -> usize {
        self.method.prefix_length()
    }

    fn reach(&self, row: &Row) -> Reach {
        if self.table.parts.is_empty() {
            return Reach { stage: usize::MAX, token: row.input_ids.len() };
        }
        if self.table.parts.contains_key(&None) {
            return Reach::EVERYTHING;
        }
        Reach::of_sites(self.table.parts.keys().flatten().copied(), 0)
    }

    fn keep_trained_text(&mut self, text: TrainedText) {
        self.text = Some(text);
    }

    fn keep_head(&mut self, head: &TaskHead) {
        self.heads.clear();
        self.head = Some(head.clone());
    }

    fn save(&self, dir: &Path) -> reft_models::Result<()> {
        let mut tensors = self.method.saved(&self.table);
        tensors.extend(self.heads.iter().map(|(name, head)| (name.clone(), head.shallow_clone())));
        let beside = Beside {
            base_model: Some(&self.base_model),
            text: self.text.as_ref(),
            head: self.head.as_ref(),
            prefix: self.prefix,
        };
        adapter_file::write(M::DECLARATION.files, dir, &self.method, tensors, beside)
    }
}

impl<M: TensorMethod> Method for M {
    fn name(&self) -> &str {
        TensorMethod::name(self)
    }

    fn options(&self) -> MethodOptions {
        TensorMethod::options(self)
    }

    fn context_taken(&self) -> usize {
        self.virtual_tokens() + self.prefix_length()
    }

    fn build(&self, model: &dyn Model, base_model: &str) -> Result<Box<dyn Adapter>> {
        let base_model = BaseModel::of(model.description(), base_model);
        let mut method = self.clone();
        if let Some(own) = TensorMethod::base_model(&mut method) {
            *own = base_model.clone();
        }
        let parts = method.parts(model.description())?;
        let table = Table::make(parts, model.placement(), &|spec| spec.make(model))?;
        let (heads, prefix) = (Vec::new(), model.description().prefix);
        Ok(Box::new(TensorAdapter {
            method,
            base_model,
            text: None,
            table,
            heads,
            head: None,
            prefix,
        }))
    }

    fn load(&self, dir: &Path, model: &dyn Model) -> Result<Box<dyn Adapter>> {
        let method = self.clone().into_read();
        let (table, heads) = table_of(&method, dir, model.description(), model.placement())?;
        let base_model = match adapter_file::base_model(M::DECLARATION.files, dir)? {
            Some(base_model) => base_model,
            None => {
                let name = adapter_file::base_model_name(M::DECLARATION.files, dir)?;
                BaseModel::of(model.description(), name.unwrap_or_default())
            }
        };
        let text = TrainedText::read(&dir.join(M::DECLARATION.files.tensors()))?;
        let prefix = model.description().prefix;
        Ok(Box::new(TensorAdapter { method, base_model, text, table, heads, head: None, prefix }))
    }

    fn check_files(&self, dir: &Path, model: &ModelDescription) -> Result<()> {
        table_of(&self.clone().into_read(), dir, model, &Device::Cpu.into()).map(drop)
    }

    fn merge(&self, dir: &Path, model: &dyn Model) -> Result<()> {
        let own = self.clone().into_read();
        let (table, _) = table_of(&own, dir, model.description(), model.placement())?;
        let weights = MergedWeights::of(model)?;
        let mut parts = table.parts.values();
        parts.try_for_each(|(constants, own)| TensorMethod::merge(self, constants, own, &weights))
    }

    fn merging(&self) -> Merging {
        match self.acts_on() {
            ActsOn::All => TensorMethod::merging(self),
            ActsOn::Prompt => {
                Merging::Never("it acts on the prompt's tokens alone, and weights act on all")
            }
        }
    }

    fn kept_per_token(&self, model: &ModelDescription, kind_bytes: f64) -> Result<Vec<f64>> {
        let mut bytes = vec![0.0; model.num_hidden_layers];
        let mut inputs: Vec<Site> = Vec::new();
        for Part { site, keeps, .. } in self.parts(model)? {
            let Some(site) = site else { continue };
            let is_shared = inputs.iter().any(|other| share_an_input(*other, site));
            let input = if is_shared && kind_bytes == F32 { 0 } else { keeps.input };
            bytes[site.layer] += F32 * (input + keeps.numbers) as f64;
            inputs.push(site);
        }
        Ok(bytes)
    }
}

/// Bytes of an f32.
const F32: f64 = 4.0;

/// Fills in the options that are not given, and checks all against a model.
pub(crate) fn resolve_config<M: TensorMethod>(
    name: &str,
    options: &MethodOptions,
    model: &ModelDescription,
) -> Result<Box<dyn Method>> {
    let method = M::decide(name, options, model)?;
    method.check()?;
    method.parts(model)?;
    Ok(Box::new(method))
}

/// Reads the configuration of an adapter directory.
pub(crate) fn read_config<M: TensorMethod>(dir: &Path) -> Result<Box<dyn Method>> {
    Ok(Box::new(read_own::<M>(dir)?))
}

/// [`read_config`] of a known method.
pub(crate) fn read_own<M: TensorMethod>(dir: &Path) -> Result<M> {
    let files = M::DECLARATION.files;
    let mut method: M = read_json(&dir.join(files.configuration()))?;
    if let Some((fields, other)) = method.other() {
        other.check(fields)?;
        other.check_acts_on(method.acts_on())?;
    }
    if let Some(targets) = method.target_modules().filter(|targets| !targets.are_told()) {
        *targets = TargetModules::of_tensors(&dir.join(files.tensors()))?;
    }
    method.check()?;
    Ok(method)
}

/// The table of a directory's tensors, checked against a model, and the tensors of heads beside them.
fn table_of<M: TensorMethod>(
    method: &M,
    dir: &Path,
    model: &ModelDescription,
    placement: &Placement,
) -> Result<(Table<M::Constants>, Heads)> {
    let parts = method.parts(model)?;
    let specs = parts.iter().flat_map(|part| &part.tensors);
    let shapes: Shapes = specs.map(|spec| (spec.name.clone(), spec.shape.clone())).collect();
    let is_head = |name: &str| method.other().is_some_and(|(_, other)| other.has_head(name));
    let files = M::DECLARATION.files;
    let mut tensors = adapter_file::read_tensors(files, dir, &shapes, &is_head, model)?;
    let heads = tensors.extract_if(.., |name, _| is_head(name)).collect();
    let table = Table::make(parts, placement, &|spec| Ok(tensors[&spec.name].shallow_clone()))?;
    Ok((table, heads))
}

/// A weight of a model by name.
pub(crate) fn weight_of(model: &dyn Model, name: &str) -> reft_models::Result<Weight> {
    let found = model.weights().into_iter().find(|(own, _)| own == name);
    found.map(|(_, weight)| weight).ok_or_else(|| reft_models::Error::Adapter {
        reason: format!("the model has no {name} to start from"),
    })
}

/// Checks that a size is positive.
pub(crate) fn check_positive(field: &str, found: i64) -> Result<()> {
    if found > 0 {
        return Ok(());
    }
    let reason = format!("{field} is {found}, expected a positive number");
    Err(Error::Model(reft_models::Error::Adapter { reason }))
}
