use crate::{Component, Error, Place, Result, Site, TaskHeadForm};

/// The description of a model without its weights, for methods, trainer, planner and tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelDescription {
    /// Family, by its `model_type`.
    pub model_type: String,
    /// Number of logits `v`.
    pub vocab_size: i64,
    /// Hidden size `d`.
    pub hidden_size: i64,
    /// Inner size of the MLP.
    pub intermediate_size: i64,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads `n_h`.
    pub num_attention_heads: i64,
    /// Key and value heads `n_kv`.
    pub num_key_value_heads: i64,
    /// Head size `d_h`.
    pub head_dim: i64,
    /// Longest context, in tokens.
    pub max_position_embeddings: i64,
    /// Whether no token sees a later token. Then a method does not change the hidden states before the first token that it touches. Otherwise the
    /// model is an encoder: it predicts no next tokens and has no head.
    pub is_causal: bool,
    /// How many tokens back each layer sees, the token itself included; an encoder sees the same number ahead. `None`: all tokens.
    pub windows: Vec<Option<i64>>,
    /// In a row with more tokens than this the keys of all tokens change, so a cache must be filled anew (LongRoPE).
    pub keys_change_at: Option<usize>,
    /// Whether the keys of all tokens depend on the length of the row (RoPE of types dynamic and longrope); then no token may be left out.
    pub depends_on_length: bool,
    /// Whether a backward needs the attention scores, as with a soft cap.
    pub keeps_scores: bool,
    /// The prefix of module names in a model of this family with a task head, such as `bert`. Adapters of such a model fit too.
    pub prefix: Option<&'static str>,
    /// The family's task head, for classification of texts.
    pub task_head: TaskHeadForm,
    /// Every tensor of the model, in the order of its checkpoints.
    pub tensors: Vec<ModelTensor>,
}

/// A tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelTensor {
    /// Its name in checkpoints: `model.layers.3.self_attn.q_proj.weight`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Its role.
    pub role: TensorRole,
    /// The stage of a [`Forward`](crate::Forward) that uses it: the stage of its block, the first stage for tensors before the blocks, or the
    /// number of blocks for tensors after them. Tied embeddings belong to the first stage.
    pub stage: usize,
}

/// The role of a tensor in a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorRole {
    /// The token embeddings `[v, d]`.
    Embeddings,
    /// The head `[v, d]`, if it is not tied to the embeddings.
    Head,
    /// The matrix `[out, in]` of a projection that methods can name.
    Projection(Site),
    /// The weight of a norm of a block's residual stream or branches.
    Norm(usize),
    /// Everything else: biases, other norms, tables of positions and of types of tokens.
    Vector,
}

/// A linear projection of a model: its site, its name in checkpoints, and its sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// Its site.
    pub site: Site,
    /// Its module in checkpoints: `model.layers.3.self_attn.q_proj`.
    pub module: String,
    /// Size of its input.
    pub in_features: i64,
    /// Size of its output.
    pub out_features: i64,
}

impl ModelDescription {
    /// Every projection that methods can name, in the order of the forward.
    pub fn projections(&self) -> Vec<Projection> {
        let projection = |tensor: &ModelTensor| match (tensor.role, &tensor.shape[..]) {
            (TensorRole::Projection(site), &[out_features, in_features]) => {
                let module = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name).to_owned();
                Some(Projection { site, module, in_features, out_features })
            }
            _ => None,
        };
        self.tensors.iter().filter_map(projection).collect()
    }

    /// The names of a block's projections for methods: `q_proj`, `down_proj`, …, after the family's module names.
    pub fn projection_names(&self) -> Vec<String> {
        let mut components: Vec<Component> = Vec::new();
        for Projection { site, .. } in self.projections() {
            if !components.contains(&site.component) {
                components.push(site.component);
            }
        }
        components.into_iter().filter_map(|own| self.projection_name(own)).collect()
    }

    /// The name of a projection, if the model has it: the shortest end of its module's name that is unique (`down_proj`, in BERT
    /// `intermediate.dense`), or its whole name within the block.
    pub fn projection_name(&self, component: Component) -> Option<String> {
        let all = self.projections();
        let in_block = |projection: &Projection| {
            let mut parts = projection.module.split('.');
            parts.find(|part| part.parse::<usize>().is_ok());
            parts.map(str::to_owned).collect::<Vec<_>>()
        };
        let own = in_block(all.iter().find(|other| other.site.component == component)?);
        let others: Vec<Vec<String>> = all
            .iter()
            .filter(|other| other.site.layer == 0 && other.site.component != component)
            .map(in_block)
            .collect();
        let is_own = |parts: &&[String]| !others.iter().any(|other| other.ends_with(parts));
        let endings = (0..own.len()).rev().map(|start| &own[start..]);
        Some(endings.clone().find(is_own).unwrap_or(&own).join("."))
    }

    /// Number of coordinates that hooks see at a site; for `o_proj` and `down_proj` of the projection's input.
    pub fn width(&self, component: Component) -> i64 {
        match component {
            Component::Query | Component::Output => self.num_attention_heads * self.head_dim,
            Component::Key | Component::Value => self.num_key_value_heads * self.head_dim,
            Component::QueryKeyValue => {
                (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
            }
            Component::Gate | Component::Up | Component::Down => self.intermediate_size,
            Component::GateUp => 2 * self.intermediate_size,
            Component::BlockInput
            | Component::AttentionOutput
            | Component::MlpOutput
            | Component::BlockOutput => self.hidden_size,
        }
    }

    /// Number of coordinates of a place.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`]; [`Error::Coordinates`].
    pub fn size_of(&self, place: &Place) -> Result<i64> {
        let (layer, layers) = (place.site.layer, self.num_hidden_layers);
        if layer >= layers {
            return Err(Error::NoSuchLayer { layer, layers });
        }
        place.size(self.width(place.site.component))
    }

    /// How many norms of the residual stream or of branches a block has.
    pub fn norms_of_block(&self) -> usize {
        let last = self.num_hidden_layers.saturating_sub(1);
        self.tensors.iter().filter(|tensor| tensor.role == TensorRole::Norm(last)).count()
    }

    /// Checks that the model predicts next tokens; `what` needs them.
    ///
    /// # Errors
    /// [`Error::Encoder`].
    pub fn check_predicts(&self, what: impl Into<String>) -> Result<()> {
        match self.is_causal {
            true => Ok(()),
            false => Err(Error::Encoder { model_type: self.model_type.clone(), what: what.into() }),
        }
    }

    /// The name of the token embeddings.
    pub fn embeddings(&self) -> Option<&str> {
        let found = self.tensors.iter().find(|tensor| tensor.role == TensorRole::Embeddings);
        found.map(|tensor| tensor.name.as_str())
    }

    /// Number of weights.
    pub fn parameters(&self) -> i64 {
        self.tensors.iter().map(ModelTensor::numel).sum()
    }
}

impl ModelTensor {
    /// Number of its entries.
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }
}

impl std::fmt::Display for ModelDescription {
    /// Family and sizes: a run is resumed only with a model of equal ones.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { model_type, num_hidden_layers, hidden_size, vocab_size, .. } = self;
        write!(
            f,
            "{model_type} of {num_hidden_layers} layers, hidden size {hidden_size}, vocabulary {vocab_size}"
        )
    }
}
