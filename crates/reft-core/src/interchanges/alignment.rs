use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::maps::orthonormal::{
    MapKind, OrthonormalMap, RAW, constants_of, load_state, random_columns,
};
use crate::{Error, Parameter, Result, SubspaceInterchange, names};

/// The parts that distributed alignment search learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AlignmentMethod {
    /// A subspace of a given dimension.
    #[default]
    Das,
    /// A full rotation and how many of its first coordinates to swap ([`boundary_gate`]).
    Boundless,
    /// A full rotation and which of its coordinates to swap ([`sigmoid_gate`]).
    SigmoidMask,
}

names!(AlignmentMethod, "alignment method", Error, {
    Das => "das",
    Boundless => "boundless",
    SigmoidMask => "sigmoid-mask",
});

/// Whether a learned gate is soft, for training, or hard, for scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateKind {
    /// Between 0 and 1, at the present temperature.
    Soft,
    /// 0 or 1, whichever is nearer: a coordinate is swapped whole or not at all.
    Hard,
}

/// The trainable parameters of `n` alignments on hidden states of size `d`: rotations, and gates where the method learns them.
///
/// One evaluation of the orthonormal map gives all rotations. A full rotation uses the map of a low-rank one, at rank `d`.
#[derive(Debug)]
pub struct AlignmentSet {
    method: AlignmentMethod,
    map_kind: MapKind,
    map: RefCell<Box<dyn OrthonormalMap>>, // Rᵀ [n, d, r]
    gate: Option<Tensor>,                  // boundaries [n] or masks [n, d]
    temperature: Cell<f64>,
}

impl AlignmentSet {
    /// `n` random alignments, from libtorch's CPU generator ([`tch::manual_seed`]): boundaries start at ½, masks half open.
    ///
    /// `rank` is the dimension of the subspace; boundless and masked search rotate all of `d` and need `rank` to be `d`.
    ///
    /// # Errors
    /// [`Error::Rank`].
    pub fn new(
        method: AlignmentMethod,
        map_kind: MapKind,
        (n, d, rank): (i64, i64, i64),
        device: Device,
    ) -> Result<Self> {
        Self::check_rank(method, d, rank)?;
        Self::starting_at(method, map_kind, &random_columns(n, d, rank, device))
    }

    /// Alignments that start at given subspaces, the columns of `Rᵀ` `[n, d, r]`; boundaries start at ½, masks half open.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Rank`]; [`Error::NotOrthonormal`].
    pub fn starting_at(
        method: AlignmentMethod,
        map_kind: MapKind,
        columns: &Tensor,
    ) -> Result<Self> {
        let got = columns.size();
        let &[n, d, rank] = &got[..] else {
            return Err(Error::Shape { name: "rotation".into(), expected: vec![-1, -1, -1], got });
        };
        Self::check_rank(method, d, rank)?;
        let options = (Kind::Float, columns.device());
        let gate = match method {
            AlignmentMethod::Das => None,
            AlignmentMethod::Boundless => Some(Tensor::ones([n], options) * 0.5),
            AlignmentMethod::SigmoidMask => Some(Tensor::zeros([n, d], options)),
        };
        let map = RefCell::new(map_kind.starting_at(columns)?);
        let gate = gate.map(|gate| gate.set_requires_grad(true));
        Ok(Self { method, map_kind, map, gate, temperature: Cell::new(1.0) })
    }

    fn check_rank(method: AlignmentMethod, hidden_size: i64, rank: i64) -> Result<()> {
        let fits = match method {
            AlignmentMethod::Das => (1..=hidden_size).contains(&rank),
            AlignmentMethod::Boundless | AlignmentMethod::SigmoidMask => rank == hidden_size,
        };
        if fits { Ok(()) } else { Err(Error::Rank { rank, hidden_size }) }
    }

    /// The learned parts.
    pub fn method(&self) -> AlignmentMethod {
        self.method
    }

    /// Number of alignments `n`.
    pub fn len(&self) -> i64 {
        self.map.borrow().raw().size()[0]
    }

    /// Whether there is no alignment.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size `d` of the hidden states.
    pub fn hidden_size(&self) -> i64 {
        self.map.borrow().raw().size()[1]
    }

    /// Dimension `r` of the rotation.
    pub fn rank(&self) -> i64 {
        self.map.borrow().raw().size()[2]
    }

    /// Sets the temperature of learned gates; see [`Annealing`](crate::Annealing).
    ///
    /// # Panics
    /// Unless it is positive.
    pub fn set_temperature(&self, temperature: f64) {
        assert!(temperature > 0.0, "invariant: a temperature is positive, got {temperature}");
        self.temperature.set(temperature);
    }

    /// The interventions with the present parameter values; gradients flow from them to [`Self::parameters`] unless their gates are hard.
    pub fn interchanges(&self, kind: GateKind) -> Vec<SubspaceInterchange> {
        let columns = self.map.borrow().columns();
        let one = |i| {
            let gate = self.gate(i).map(|gate| match kind {
                GateKind::Soft => gate,
                GateKind::Hard => gate.detach().ge(0.5).to_kind(Kind::Float),
            });
            SubspaceInterchange { columns: columns.select(0, i), gate } // orthonormal by the map
        };
        (0..self.len()).map(one).collect()
    }

    /// The gate `m` `[d]` of one alignment at the present temperature.
    fn gate(&self, i: i64) -> Option<Tensor> {
        let gate = self.gate.as_ref()?.select(0, i);
        let temperature = Tensor::from(self.temperature.get() as f32).to_device(gate.device());
        Some(match self.method {
            AlignmentMethod::Boundless => {
                // outside of 0..1 no coordinate opens or closes, and the gradient vanishes
                boundary_gate(&gate.clamp(1e-3, 1.0), &temperature, self.hidden_size())
            }
            AlignmentMethod::Das | AlignmentMethod::SigmoidMask => {
                sigmoid_gate(&gate, &temperature)
            }
        })
    }

    /// The penalty on a learned gate, a scalar summed over the alignments: the boundary, or the open share of the mask. Without it, swapping
    /// everything would be as good as swapping only the subspace that matters.
    pub fn penalty(&self) -> Option<Tensor> {
        Some(match self.method {
            AlignmentMethod::Das => return None,
            AlignmentMethod::Boundless => self.gate.as_ref()?.sum(Kind::Float),
            AlignmentMethod::SigmoidMask => {
                let share = |i| Some(self.gate(i)?.mean(Kind::Float));
                let shares: Option<Vec<Tensor>> = (0..self.len()).map(share).collect();
                Tensor::stack(&shares?, 0).sum(Kind::Float)
            }
        })
    }

    /// How many coordinates each alignment swaps.
    pub fn swapped(&self) -> Vec<i64> {
        let open = |gate: Tensor| gate.ge(0.5).sum(Kind::Int64).int64_value(&[]);
        (0..self.len()).map(|i| self.gate(i).map_or(self.rank(), open)).collect()
    }

    /// The trainable leaves, stacked over the alignments. Weight decay has no meaning for any of them.
    pub fn parameters(&self) -> Vec<Parameter> {
        let gate = self.gate.as_ref().map(|gate| Parameter::without_weight_decay("gate", gate));
        let raw = Parameter::rotation(RAW, self.map.borrow().raw());
        [Some(raw), gate].into_iter().flatten().collect()
    }

    /// Tensors that a checkpoint needs to resume training bit for bit, in the shapes that they are trained in.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let leaves = self.parameters().into_iter().map(|p| (p.name, p.tensor.detach().copy()));
        leaves.chain(constants_of(&**self.map.borrow())).collect()
    }

    /// Restores a [`Self::state`], whose tensors must have the shapes of this one's.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::UnexpectedTensor`] or [`Error::Shape`], by name. After an error nothing is changed.
    pub fn load_state(&self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let (leaves, method) = (self.parameters(), self.method.name());
        let map = &mut *self.map.borrow_mut();
        load_state(state, leaves, Some((self.map_kind, map)), method)
    }
}

/// The gate of boundless distributed alignment search (Wu et al. 2023, arXiv:2305.08809): a learned number of coordinates.
///
/// `mᵢ = σ(i/T) σ((β d − i)/T)` for `i = 0 … d−1`: coordinates before the boundary `β d` are open, later ones closed. The higher the
/// temperature `T`, the softer the boundary.
///
/// # Shapes
/// `boundary` `β` and `temperature` `T`: `[]`, differentiable; result `[d]`.
pub fn boundary_gate(boundary: &Tensor, temperature: &Tensor, hidden_size: i64) -> Tensor {
    let i = Tensor::arange(hidden_size, (Kind::Float, boundary.device()));
    let before = (boundary * hidden_size as f64 - &i) / temperature;
    (i / temperature).sigmoid() * before.sigmoid()
}

/// A separate gate for every coordinate: `mᵢ = σ(aᵢ/T)`.
///
/// # Shapes
/// `mask` `a`: `[d]`, `temperature` `T`: `[]`, both differentiable; result `[d]`.
pub fn sigmoid_gate(mask: &Tensor, temperature: &Tensor) -> Tensor {
    (mask / temperature).sigmoid()
}

/// The temperature of a learned gate over training: it falls linearly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Annealing {
    /// Temperature of the first step.
    pub from: f64,
    /// Temperature of the last step.
    pub to: f64,
}

impl Annealing {
    /// The temperature after a share of the steps, 0 to 1.
    pub fn at(self, share: f64) -> f64 {
        let share = share.clamp(0.0, 1.0);
        self.from * (1.0 - share) + self.to * share
    }
}

impl Default for Annealing {
    /// 50 to 0.1, as in boundless search.
    fn default() -> Self {
        Self { from: 50.0, to: 0.1 }
    }
}
