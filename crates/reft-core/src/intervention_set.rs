use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::edit::{Edit, Source, Target};
use crate::method::{Init, InterventionConfig, Method};
use crate::orthonormal::{OrthonormalMap, check_orthonormal, orthonormality_error, random_columns};
use crate::parameter::Parameter;
use crate::{Error, Result};

/// The trainable numbers of `n` interventions of one method on hidden states of size `d`.
///
/// Equal tensors of all interventions are stacked, so that one orthonormal map per step, and one optimizer update per kind of
/// tensor, serve every layer. [`Self::edits`] gives the interventions themselves.
#[derive(Debug)]
pub struct InterventionSet {
    config: InterventionConfig,
    hidden_size: i64,
    directions: Directions,
    source_weight: Option<Tensor>,   // W [n, r, d]
    source_bias: Tensor,             // b [n, r]
    projection_bias: Option<Tensor>, // c [n, r]
}

/// The edit's directions: constrained or not, and trained or not.
#[derive(Debug)]
enum Directions {
    Orthonormal(Box<dyn OrthonormalMap>), // Rᵀ [n, d, r], trained
    Rotation(Tensor),                     // Rᵀ [n, d, r] as loaded, to the last bit
    Free(Tensor),                         // P [n, r, d]
}

/// The tensors of one intervention by the names of the adapter format: `rotation` `[d, r]` or `proj_layer.weight` `[r, d]`,
/// `learned_source.weight` `[r, d]`, `learned_source.bias` `[r]`, `proj_layer.bias` `[r]`.
pub type InterventionTensors = BTreeMap<String, Tensor>;

const ROTATION: &str = "rotation";
const RAW: &str = "rotation.raw";
const PROJECTION: &str = "proj_layer.weight";
const PROJECTION_BIAS: &str = "proj_layer.bias";
const SOURCE_WEIGHT: &str = "learned_source.weight";
const SOURCE_BIAS: &str = "learned_source.bias";

impl InterventionSet {
    /// `n` new interventions. Random numbers come from libtorch's CPU generator ([`tch::manual_seed`]).
    ///
    /// # Errors
    /// What [`InterventionConfig::check`] refuses.
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
            tensors.insert(ROTATION.into(), columns.shallow_clone());
            columns.transpose(1, 2)
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
                    directions.copy(),
                    projection_bias.as_ref().map_or_else(|| zeros(&[n, r]), Tensor::copy),
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
        Self::from_stacked(config, hidden_size, tensors, device)?.into_trainable()
    }

    /// Interventions from their tensors, as an adapter file keeps them. They are used as they are, to the last bit, and are not
    /// trainable; [`Self::into_trainable`] changes that.
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
        for (name, shape) in config.tensor_shapes(hidden_size) {
            let mut same = Vec::with_capacity(interventions.len());
            for (i, tensors) in interventions.iter().enumerate() {
                let missing = || Error::MissingTensor {
                    name: format!("{i}.{name}"),
                    method: config.method.name(),
                };
                let tensor = tensors.get(name).ok_or_else(missing)?;
                if tensor.size() != shape {
                    return Err(Error::Shape {
                        name: format!("{i}.{name}"),
                        expected: shape,
                        got: tensor.size(),
                    });
                }
                same.push(tensor.to_kind(Kind::Float));
            }
            stacked.insert(name.to_owned(), Tensor::stack(&same, 0));
        }
        for (i, tensors) in interventions.iter().enumerate() {
            if let Some(name) = tensors.keys().find(|name| !stacked.contains_key(*name)) {
                return Err(Error::UnexpectedTensor {
                    name: format!("{i}.{name}"),
                    method: config.method.name(),
                });
            }
        }
        Self::from_stacked(config, hidden_size, stacked, device)
    }

    fn from_stacked(
        config: InterventionConfig,
        hidden_size: i64,
        mut tensors: InterventionTensors,
        device: Device,
    ) -> Result<Self> {
        let mut take = |name: &str| Some(tensors.remove(name)?.detach().to_device(device).copy());
        let missing = |name: &str| Error::MissingTensor {
            name: name.to_owned(),
            method: config.method.name(),
        };
        let directions = if config.method.has_rotation() {
            let columns = take(ROTATION).ok_or_else(|| missing(ROTATION))?;
            check_orthonormal(ROTATION, &columns)?;
            Directions::Rotation(columns)
        } else {
            Directions::Free(take(PROJECTION).ok_or_else(|| missing(PROJECTION))?)
        };
        Ok(Self {
            directions,
            source_weight: take(SOURCE_WEIGHT),
            source_bias: take(SOURCE_BIAS).ok_or_else(|| missing(SOURCE_BIAS))?,
            projection_bias: take(PROJECTION_BIAS),
            config,
            hidden_size,
        })
    }

    /// Makes every tensor a leaf that gradients gather in. An orthonormal map starts at the present rotations: they change by
    /// rounding.
    ///
    /// # Errors
    /// [`Error::NotOrthonormal`] if the rotations are none.
    pub fn into_trainable(mut self) -> Result<Self> {
        if let Directions::Rotation(columns) = &self.directions {
            let map = self.config.orthonormal_map.starting_at(columns)?;
            self.directions = Directions::Orthonormal(map);
        }
        for (_, tensor) in self.free_tensors() {
            let _leaf = tensor.set_requires_grad(true);
        }
        Ok(self)
    }

    /// What the interventions are.
    pub fn config(&self) -> &InterventionConfig {
        &self.config
    }

    /// Number of interventions `n`.
    pub fn len(&self) -> i64 {
        self.source_bias.size()[0]
    }

    /// Whether there is no intervention.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Replaces the orthonormal map, for instance by one on a base of the caller's choice.
    ///
    /// # Errors
    /// [`Error::Shape`] if it maps to another shape; [`Error::UnexpectedTensor`] if the method has no rotation.
    pub fn set_orthonormal_map(&mut self, map: Box<dyn OrthonormalMap>) -> Result<()> {
        let (expected, got) = match &self.directions {
            Directions::Orthonormal(current) => (current.raw().size(), map.raw().size()),
            Directions::Rotation(columns) => (columns.size(), map.raw().size()),
            Directions::Free(_) => {
                let method = self.config.method.name();
                return Err(Error::UnexpectedTensor { name: ROTATION.into(), method });
            }
        };
        if expected != got {
            return Err(Error::Shape { name: ROTATION.into(), expected, got });
        }
        self.directions = Directions::Orthonormal(map);
        Ok(())
    }

    /// The interventions with their present numbers: one evaluation of the orthonormal map for all of them.
    ///
    /// Gradients flow from them to [`Self::parameters`]. `train` switches dropout on.
    pub fn edits(&self, train: bool) -> Vec<Edit> {
        let directions = match &self.directions {
            Directions::Orthonormal(map) => map.columns(),
            Directions::Rotation(columns) => columns.shallow_clone(),
            Directions::Free(projection) => projection.transpose(1, 2),
        };
        self.edits_along(&directions, train)
    }

    /// [`Self::edits`] along given directions `Dᵀ` `[n, d, r]`, so that a caller can ask for their gradient.
    pub fn edits_along(&self, directions: &Tensor, train: bool) -> Vec<Edit> {
        // unbound in one operation: the gradient of a slice would be as large as the whole stack
        let unbound = |stack: &Tensor| stack.unbind(0).into_iter();
        let mut weights = self.source_weight.as_ref().map(unbound);
        let mut projection_biases = self.projection_bias.as_ref().map(unbound);
        let edit = |(directions, bias)| {
            let source = match weights.as_mut().and_then(Iterator::next) {
                Some(weight) => Source::Affine { weight, bias, act_fn: self.config.act_fn },
                None => Source::Constant(bias),
            };
            let target = match projection_biases.as_mut().and_then(Iterator::next) {
                _ if !self.config.method.replaces() => Target::Nothing,
                Some(c) => Target::Biased(c),
                None => Target::Coordinates,
            };
            let dropout = if train { self.config.dropout } else { 0.0 };
            Edit { directions, source, target, dropout }
        };
        unbound(directions).zip(unbound(&self.source_bias)).map(edit).collect()
    }

    /// The trainable leaves, each stacked over the interventions; none unless [`Self::into_trainable`] made them.
    ///
    /// Rotations are exempt from weight decay.
    pub fn parameters(&self) -> Vec<Parameter> {
        let raw = match &self.directions {
            Directions::Orthonormal(map) => Some(Parameter::rotation(RAW, map.raw())),
            Directions::Rotation(_) | Directions::Free(_) => None,
        };
        let free = self.free_tensors().into_iter().filter(|(_, tensor)| tensor.requires_grad());
        raw.into_iter().chain(free.map(|(name, tensor)| Parameter::new(name, tensor))).collect()
    }

    /// The tensors without constraint, stacked, by their names.
    fn free_tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let projection = match &self.directions {
            Directions::Free(projection) => Some((PROJECTION, projection)),
            Directions::Orthonormal(_) | Directions::Rotation(_) => None,
        };
        let weight = self.source_weight.as_ref().map(|weight| (SOURCE_WEIGHT, weight));
        let c = self.projection_bias.as_ref().map(|c| (PROJECTION_BIAS, c));
        let bias = Some((SOURCE_BIAS, &self.source_bias));
        [projection, weight, bias, c].into_iter().flatten().collect()
    }

    /// The tensors of each intervention, as [`Self::from_tensors`] takes them: `rotation` is `Rᵀ` itself.
    pub fn tensors(&self) -> Vec<InterventionTensors> {
        let rotation = match &self.directions {
            Directions::Orthonormal(map) => Some((ROTATION, map.columns())),
            Directions::Rotation(columns) => Some((ROTATION, columns.shallow_clone())),
            Directions::Free(_) => None,
        };
        let free = self.free_tensors().into_iter().map(|(name, t)| (name, t.shallow_clone()));
        let stacked: Vec<_> = rotation.into_iter().chain(free).collect();
        let one = |i| {
            let select = |(name, tensor): &(&str, Tensor)| {
                (String::from(*name), tensor.detach().select(0, i).contiguous().copy())
            };
            stacked.iter().map(select).collect()
        };
        (0..self.len()).map(one).collect()
    }

    /// What a checkpoint of a training run needs to go on bit for bit: the leaves and the constants of the orthonormal map.
    pub fn state(&self) -> InterventionTensors {
        let leaves = self.parameters().into_iter().map(|p| (p.name, p.tensor));
        let constants = match &self.directions {
            Directions::Orthonormal(map) => map.constants(),
            Directions::Rotation(_) | Directions::Free(_) => Vec::new(),
        };
        let constants = constants.into_iter().map(|(name, c)| (format!("{ROTATION}.{name}"), c));
        leaves.chain(constants).map(|(name, tensor)| (name, tensor.detach().copy())).collect()
    }

    /// Goes back to a [`Self::state`].
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::UnexpectedTensor`] or [`Error::Shape`], by name; nothing is changed then.
    pub fn load_state(&mut self, state: &InterventionTensors) -> Result<()> {
        let method = self.config.method.name();
        let own = self.state();
        if let Some(name) = state.keys().find(|name| !own.contains_key(*name)) {
            return Err(Error::UnexpectedTensor { name: name.clone(), method });
        }
        for (name, tensor) in &own {
            let found = state
                .get(name)
                .ok_or_else(|| Error::MissingTensor { name: name.clone(), method })?;
            // The base of a map may be given by any number of columns; its other sizes are those of the leaf.
            let is_constant = name.starts_with(ROTATION) && name != RAW;
            if found.size() != tensor.size() && !is_constant {
                return Err(Error::Shape {
                    name: name.clone(),
                    expected: tensor.size(),
                    got: found.size(),
                });
            }
        }
        let device = self.source_bias.device();
        if let Directions::Orthonormal(map) = &mut self.directions {
            let raw = state[RAW].to_device(device);
            let constant = |name: &str| state.get(&format!("{ROTATION}.{name}")).map(Tensor::copy);
            *map = self.config.orthonormal_map.restore(&raw, &constant)?;
        }
        tch::no_grad(|| {
            for mut parameter in self.parameters() {
                parameter.tensor.copy_(&state[&parameter.name]);
            }
        });
        Ok(())
    }

    /// Largest entry of `|RᵀR − I|` over the interventions; `None` if the method has no rotation.
    pub fn orthonormality_error(&self) -> Option<f64> {
        match &self.directions {
            Directions::Orthonormal(map) => Some(orthonormality_error(&map.columns())),
            Directions::Rotation(columns) => Some(orthonormality_error(columns)),
            Directions::Free(_) => None,
        }
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
