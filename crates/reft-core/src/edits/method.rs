use crate::{Error, MapKind, Result, names};

/// The edits of representation fine-tuning.
///
/// `R` is `[r, d]` with orthonormal rows, `P` and `W₂` are `[r, d]` without constraint, `W` and `W₁` are `[r, d]`, `b` and `c` are
/// `[r]`, `σ` is the activation (`act_fn`, linear unless said). Sources: Wu et al. 2024 (arXiv:2404.03592) and pyreft 0.1.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// `h + Rᵀ(σ(W h + b) − R h)`: LoReFT, the paper's strongest form.
    Loreft,
    /// `h + W₂ᵀ σ(W₁ h + b)`: the paper's DiReFT, in pyreft `NodireftIntervention`.
    Direft,
    /// `h + Rᵀ σ(W h + b)`: pyreft's `DireftIntervention`, which the paper calls an ablation.
    DireftOrth,
    /// `h + Pᵀ(σ(W h + b) − P h − c)`: LoReFT without the constraint; `c` with `add_bias`.
    Noreft,
    /// `h + Rᵀ(b − R h)`: a constant put into the subspace.
    Consreft,
    /// `h + Rᵀ b`: a constant vector of the subspace is added.
    Lobireft,
}

names!(Method, "method", Error, {
    Loreft => "loreft",
    Direft => "direft",
    DireftOrth => "direft-orth",
    Noreft => "noreft",
    Consreft => "consreft",
    Lobireft => "lobireft",
});

impl Method {
    /// Whether the edit's directions are a rotation `R` (orthonormal rows) and not a free matrix.
    pub fn has_rotation(self) -> bool {
        !matches!(self, Self::Direft | Self::Noreft)
    }

    /// Whether the source depends on the hidden state: `W h + b` rather than `b` alone.
    pub fn has_affine_source(self) -> bool {
        !matches!(self, Self::Consreft | Self::Lobireft)
    }

    /// Whether the source replaces the present coordinates in the subspace; otherwise it is added to them.
    pub fn replaces(self) -> bool {
        matches!(self, Self::Loreft | Self::Noreft | Self::Consreft)
    }
}

/// `σ` of the learned source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// `x`
    #[default]
    Linear,
    /// `max(x, 0)`
    Relu,
    /// `x Φ(x)`, exact
    Gelu,
    /// `x / (1 + e⁻ˣ)`
    Silu,
    /// `tanh x`
    Tanh,
    /// `1 / (1 + e⁻ˣ)`
    Sigmoid,
}

names!(Activation, "act_fn", Error, {
    Linear => "linear",
    Relu => "relu",
    Gelu => "gelu",
    Silu => "silu",
    Tanh => "tanh",
    Sigmoid => "sigmoid",
});

impl Activation {
    /// `σ(x)`, elementwise.
    pub fn apply(self, x: tch::Tensor) -> tch::Tensor {
        match self {
            Self::Linear => x,
            Self::Relu => x.relu(),
            Self::Gelu => x.gelu("none"),
            Self::Silu => x.silu(),
            Self::Tanh => x.tanh(),
            Self::Sigmoid => x.sigmoid(),
        }
    }
}

/// How an intervention starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Init {
    /// `Φ(h) = h`: training begins from the base model itself (`W = R`, `b = 0`; DiReFT: `W₂ = 0`; direft-orth: `W = 0`).
    Identity,
    /// pyreft's random start: linear layers uniform in ±1/√d, constants uniform in `[0, 1)`.
    Reference,
}

names!(Init, "init", Error, { Identity => "identity", Reference => "reference" });

/// The configuration of one intervention: everything but its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct InterventionConfig {
    /// The edit.
    pub method: Method,
    /// Dimension `r` of the subspace.
    pub low_rank_dimension: i64,
    /// How `R` is kept orthonormal while it trains.
    pub orthonormal_map: MapKind,
    /// Activation of the learned source.
    pub act_fn: Activation,
    /// Probability that a coordinate of the edit (not of the hidden state) is dropped in training.
    pub dropout: f64,
    /// Whether noreft's projection has a bias `c`.
    pub add_bias: bool,
    /// Largest norm of the edit, as a multiple of the hidden state's norm; `None`: no bound.
    pub max_edit_norm: Option<f64>,
    /// Start; default: the identity if method and activation allow it, else the reference start.
    pub init: Option<Init>,
}

impl InterventionConfig {
    /// The method with dimension `r` and every default.
    pub fn new(method: Method, low_rank_dimension: i64) -> Self {
        Self {
            method,
            low_rank_dimension,
            orthonormal_map: MapKind::default(),
            act_fn: Activation::default(),
            dropout: 0.0,
            add_bias: false,
            max_edit_norm: None,
            init: None,
        }
    }

    /// Checks that such an intervention can exist on hidden states of size `d`.
    ///
    /// # Errors
    /// [`Error::Rank`], [`Error::Dropout`], [`Error::EditNorm`] or [`Error::NoIdentityStart`].
    pub fn check(&self, hidden_size: i64) -> Result<()> {
        let rank = self.low_rank_dimension;
        if rank < 1 || rank > hidden_size {
            return Err(Error::Rank { rank, hidden_size });
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::Dropout(self.dropout));
        }
        if let Some(bound) = self.max_edit_norm.filter(|x| !x.is_finite() || *x <= 0.0) {
            return Err(Error::EditNorm(bound));
        }
        if self.init == Some(Init::Identity) && !self.can_start_as_identity() {
            let (method, act_fn) = (self.method.name(), self.act_fn.name());
            return Err(Error::NoIdentityStart { method, act_fn });
        }
        Ok(())
    }

    /// The start that is used: `init` or its default.
    pub fn resolved_init(&self) -> Init {
        let default = if self.can_start_as_identity() { Init::Identity } else { Init::Reference };
        self.init.unwrap_or(default)
    }

    /// Trainable parameters of one intervention on hidden states of size `d`.
    pub fn trainable_parameters(&self, hidden_size: i64) -> i64 {
        let shapes = self.tensor_shapes(hidden_size).into_iter();
        shapes.map(|(_, shape)| shape.iter().product::<i64>()).sum()
    }

    fn can_start_as_identity(&self) -> bool {
        match self.method {
            Method::Loreft | Method::Noreft => self.act_fn == Activation::Linear,
            Method::DireftOrth => self.act_fn != Activation::Sigmoid, // σ(0) = 0
            Method::Direft | Method::Lobireft => true,
            Method::Consreft => false,
        }
    }
}
