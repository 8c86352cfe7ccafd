use std::cell::RefCell;
use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::edits::loreft::{Edit, Source, Target};
use crate::maps::orthonormal::{
    OrthonormalMap, RAW, check_orthonormal, constants_of, load_state, orthonormality_error,
    random_columns,
};
use crate::{Activation, Error, Init, InterventionConfig, Method, Parameter, Result};

/// The trainable parameters of `n` interventions of one method on hidden states of size `d`.
///
/// Tensors of the same name are stacked over the interventions, so that one orthonormal map per step, and one optimizer update
/// per name, serve every layer. [`Self::edits`] gives the interventions themselves.
#[derive(Debug)]
pub struct InterventionSet {
    config: InterventionConfig,
    hidden_size: i64,
    rotation: RefCell<Option<Rotation>>, // a state is loaded through a shared handle
    free: Vec<(&'static str, Tensor)>, // P [n, r, d] if there is no rotation; W [n, r, d], b [n, r], c [n, r]
}

/// `Rᵀ` `[n, d, r]`, trained or not.
#[derive(Debug)]
enum Rotation {
    /// Trained.
    Mapped(Box<dyn OrthonormalMap>),
    /// As loaded, bit for bit.
    Loaded(Tensor),
}

impl Rotation {
    fn columns(&self) -> Tensor {
        match self {
            Self::Mapped(map) => map.columns(),
            Self::Loaded(columns) => columns.shallow_clone(),
        }
    }
}

/// The tensors of one intervention by the names of the adapter format: `rotation` `[d, r]` or `proj_layer.weight` `[r, d]`,
/// `learned_source.weight` `[r, d]`, `learned_source.bias` `[r]`, `proj_layer.bias` `[r]`.
pub type InterventionTensors = BTreeMap<String, Tensor>;

const ROTATION: &str = "rotation";
const PROJECTION: &str = "proj_layer.weight";
const PROJECTION_BIAS: &str = "proj_layer.bias";
const SOURCE_WEIGHT: &str = "learned_source.weight";
const SOURCE_BIAS: &str = "learned_source.bias";

impl InterventionSet {
    /// `n` new interventions. Random numbers come from libtorch's CPU generator ([`tch::manual_seed`]).
    ///
    /// # Errors
    /// Errors of [`InterventionConfig::check`].
    pub fn new(
        config: InterventionConfig,
        n: i64,
        hidden_size: i64,
        device: Device,
    ) -> Result<Self> {
        config.check(hidden_size)?;
        let (r, d) = (config.low_rank_dimension, hidden_size);
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        let uniform = |shape: &[i64], low: f64, high: f64| zeros(shape).uniform_(low, high);
        let bound = 1.0 / (d as f64).sqrt(); // nn.Linear's start for d inputs
        let identity = config.resolved_init() == Init::Identity;

        let mut tensors = InterventionTensors::new(); // stacked: [n, ..]
        let directions = if config.method.has_rotation() {
            let columns = random_columns(n, d, r, Device::Cpu);
            let directions = columns.transpose(1, 2);
            tensors.insert(ROTATION.into(), columns);
            directions
        } else {
            let projection = match (config.method, identity) {
                (Method::Direft, true) => zeros(&[n, r, d]),
                _ => uniform(&[n, r, d], -bound, bound),
            };
            tensors.insert(PROJECTION.into(), projection.shallow_clone());
            projection
        };
        let projection_bias = config.has_projection_bias().then(|| uniform(&[n, r], -bound, bound));
        if config.method.has_affine_source() {
            let (weight, bias) = match (config.method, identity) {
                (Method::Loreft | Method::Noreft, true) => (
                    directions,
                    projection_bias.as_ref().map_or_else(|| zeros(&[n, r]), Tensor::shallow_clone),
                ),
                (Method::DireftOrth, true) => (zeros(&[n, r, d]), zeros(&[n, r])),
                _ => (uniform(&[n, r, d], -bound, bound), uniform(&[n, r], -bound, bound)),
            };
            tensors.insert(SOURCE_WEIGHT.into(), weight);
            tensors.insert(SOURCE_BIAS.into(), bias);
        } else {
            let b = if identity { zeros(&[n, r]) } else { uniform(&[n, r], 0.0, 1.0) };
            tensors.insert(SOURCE_BIAS.into(), b);
        }
        if let Some(c) = projection_bias {
            tensors.insert(PROJECTION_BIAS.into(), c);
        }
        Self::from_stacked(config, hidden_size, &tensors, device)?.into_trainable()
    }

    /// Interventions from the tensors of an adapter file. The tensors are used bit for bit, and are not trainable before
    /// [`Self::into_trainable`].
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::UnexpectedTensor`], [`Error::Shape`] or [`Error::NotOrthonormal`], by name.
    pub fn from_tensors(
        config: InterventionConfig,
        hidden_size: i64,
        interventions: &[InterventionTensors],
        device: Device,
    ) -> Result<Self> {
        config.check(hidden_size)?;
        let mut stacked = InterventionTensors::new();
        let method = config.method.name();
        for (tensor, shape) in config.tensor_shapes(hidden_size) {
            let one = |(i, tensors): (usize, &InterventionTensors)| {
                let name = format!("{i}.{tensor}");
                let Some(found) = tensors.get(tensor) else {
                    return Err(Error::MissingTensor { name, method });
                };
                if found.size() != shape {
                    return Err(Error::Shape { name, expected: shape.clone(), got: found.size() });
                }
                Ok(found.to_kind(Kind::Float))
            };
            let same = interventions.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?;
            stacked.insert(tensor.to_owned(), Tensor::stack(&same, 0));
        }
        for (i, tensors) in interventions.iter().enumerate() {
            if let Some(name) = tensors.keys().find(|name| !stacked.contains_key(*name)) {
                return Err(Error::UnexpectedTensor { name: format!("{i}.{name}"), method });
            }
        }
        Self::from_stacked(config, hidden_size, &stacked, device)
    }

    /// Interventions from all their tensors, stacked.
    fn from_stacked(
        config: InterventionConfig,
        hidden_size: i64,
        stacked: &InterventionTensors,
        device: Device,
    ) -> Result<Self> {
        let (mut rotation, mut free) = (None, Vec::new());
        for (name, _) in config.tensor_shapes(hidden_size) {
            let tensor = stacked[name].detach().to_device(device).copy();
            if name == ROTATION {
                check_orthonormal(ROTATION, &tensor)?;
                rotation = Some(Rotation::Loaded(tensor));
            } else {
                free.push((name, tensor));
            }
        }
        Ok(Self { config, hidden_size, rotation: RefCell::new(rotation), free })
    }

    /// Makes every tensor a leaf that accumulates gradients. An orthonormal map starts at the present rotations, which change
    /// only by rounding.
    ///
    /// # Errors
    /// [`Error::NotOrthonormal`] if a rotation is not orthonormal.
    pub fn into_trainable(mut self) -> Result<Self> {
        if let Some(Rotation::Loaded(columns)) = self.rotation.get_mut() {
            let map = self.config.orthonormal_map.starting_at(columns)?;
            self.rotation.replace(Some(Rotation::Mapped(map)));
        }
        self.free =
            self.free.into_iter().map(|(name, t)| (name, t.set_requires_grad(true))).collect();
        Ok(self)
    }

    /// The configuration of the interventions.
    pub fn config(&self) -> &InterventionConfig {
        &self.config
    }

    /// Number of interventions `n`.
    pub fn len(&self) -> i64 {
        self.source_bias().size()[0]
    }

    /// Whether there is no intervention.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The interventions with the present parameter values. One evaluation of the orthonormal map serves all of them.
    ///
    /// Gradients flow from them to [`Self::parameters`]. `train` switches dropout on.
    pub fn edits(&self, train: bool) -> Vec<Edit> {
        let projection = || self.free(PROJECTION).map(|projection| projection.transpose(1, 2));
        let directions = self.columns().or_else(projection);
        self.edits_along(&directions.expect("invariant: one of the two is there"), train)
    }

    /// [`Self::edits`] along given directions `Dᵀ` `[n, d, r]`, so that a caller can ask for their gradient.
    pub fn edits_along(&self, directions: &Tensor, train: bool) -> Vec<Edit> {
        // unbound in one operation: the gradient of a slice would be as large as the whole stack
        let unbound = |stack: &Tensor| stack.unbind(0).into_iter();
        let (replaces, act_fn) = (self.config.method.replaces(), self.config.act_fn);
        let (weights, c) = (self.free(SOURCE_WEIGHT), self.free(PROJECTION_BIAS));
        // W h + b − (D h + c) = (W − D) h + (b − c)
        let folds = replaces && act_fn == Activation::Linear && weights.is_some();
        let folded = weights.filter(|_| folds).map(|w| w - directions.transpose(1, 2));
        let folded_bias = c.filter(|_| folds).map(|c| self.source_bias() - c);
        let mut weights = folded.as_ref().or(weights).map(unbound);
        let biases = unbound(folded_bias.as_ref().unwrap_or(self.source_bias()));
        let mut projection_biases = c.map(unbound);
        let edit = |(directions, bias)| {
            let source = match weights.as_mut().and_then(Iterator::next) {
                Some(weight) => Source::Affine { weight, bias, act_fn },
                None => Source::Constant(bias),
            };
            let target = match projection_biases.as_mut().and_then(Iterator::next) {
                _ if folds || !replaces => Target::Nothing,
                Some(c) => Target::Biased(c),
                None => Target::Coordinates,
            };
            let dropout = if train { self.config.dropout } else { 0.0 };
            Edit { directions, source, target, dropout, max_norm: self.config.max_edit_norm }
        };
        unbound(directions).zip(biases).map(edit).collect()
    }

    /// The trainable leaves, each stacked over the interventions; none unless [`Self::into_trainable`] made them.
    ///
    /// Rotations are exempt from weight decay.
    pub fn parameters(&self) -> Vec<Parameter> {
        let raw = match &*self.rotation.borrow() {
            Some(Rotation::Mapped(map)) => Some(Parameter::rotation(RAW, map.raw())),
            Some(Rotation::Loaded(_)) | None => None,
        };
        let free = self.free.iter().filter(|(_, tensor)| tensor.requires_grad());
        raw.into_iter().chain(free.map(|(name, tensor)| Parameter::new(*name, tensor))).collect()
    }

    /// `Rᵀ` `[n, d, r]`, if the method has a rotation.
    fn columns(&self) -> Option<Tensor> {
        self.rotation.borrow().as_ref().map(Rotation::columns)
    }

    /// An unconstrained tensor, stacked, if the method has it.
    fn free(&self, name: &str) -> Option<&Tensor> {
        self.free.iter().find(|(own, _)| *own == name).map(|(_, tensor)| tensor)
    }

    fn source_bias(&self) -> &Tensor {
        self.free(SOURCE_BIAS).expect("invariant: every method has a source bias")
    }

    /// The tensors of each intervention, as [`Self::from_tensors`] takes them: `rotation` is `Rᵀ` itself.
    pub fn tensors(&self) -> Vec<InterventionTensors> {
        let rotation = self.columns().map(|columns| (ROTATION, columns));
        let stacked: Vec<(&str, &Tensor)> =
            rotation.iter().chain(&self.free).map(|(name, t)| (*name, t)).collect();
        let one = |i| {
            let select = |(name, tensor): &(&str, &Tensor)| {
                (String::from(*name), tensor.detach().select(0, i).contiguous().copy())
            };
            stacked.iter().map(select).collect()
        };
        (0..self.len()).map(one).collect()
    }

    /// Tensors that a checkpoint needs to resume training bit for bit: the leaves and the constants of the orthonormal map.
    pub fn state(&self) -> InterventionTensors {
        let leaves = self.parameters().into_iter().map(|p| (p.name, p.tensor.detach().copy()));
        match &*self.rotation.borrow() {
            Some(Rotation::Mapped(map)) => leaves.chain(constants_of(&**map)).collect(),
            Some(Rotation::Loaded(_)) | None => leaves.collect(),
        }
    }

    /// Restores a [`Self::state`].
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::UnexpectedTensor`] or [`Error::Shape`], by name. After an error nothing is changed.
    pub fn load_state(&self, state: &InterventionTensors) -> Result<()> {
        let leaves = self.parameters();
        let mut rotation = self.rotation.borrow_mut();
        let map = match &mut *rotation {
            Some(Rotation::Mapped(map)) => Some((self.config.orthonormal_map, map)),
            Some(Rotation::Loaded(_)) | None => None,
        };
        load_state(state, leaves, map, self.config.method.name())
    }

    /// Largest entry of `|RᵀR − I|` over the interventions; `None` if the method has no rotation.
    pub fn orthonormality_error(&self) -> Option<f64> {
        self.columns().map(|columns| orthonormality_error(&columns))
    }

    /// The device of all its tensors.
    pub fn device(&self) -> Device {
        self.free.first().map_or(Device::Cpu, |(_, tensor)| tensor.device())
    }

    /// Size `d` of the hidden states.
    pub fn hidden_size(&self) -> i64 {
        self.hidden_size
    }
}

impl InterventionConfig {
    /// Names and shapes of the tensors of one intervention.
    pub fn tensor_shapes(&self, hidden_size: i64) -> Vec<(&'static str, Vec<i64>)> {
        let (r, d) = (self.low_rank_dimension, hidden_size);
        let mut shapes = vec![if self.method.has_rotation() {
            (ROTATION, vec![d, r])
        } else {
            (PROJECTION, vec![r, d])
        }];
        if self.method.has_affine_source() {
            shapes.push((SOURCE_WEIGHT, vec![r, d]));
        }
        shapes.push((SOURCE_BIAS, vec![r]));
        if self.has_projection_bias() {
            shapes.push((PROJECTION_BIAS, vec![r]));
        }
        shapes
    }

    fn has_projection_bias(&self) -> bool {
        self.method == Method::Noreft && self.add_bias
    }
}
