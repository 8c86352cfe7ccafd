use std::collections::BTreeSet;
use std::ops::Deref;

use crate::transformer::config::module_names::BranchNorms;
use crate::{
    AttentionOptions, Component, EmbeddingOptions, MlpActivation, MlpKind, MlpOptions,
    ModelDescription, ModelTensor, ModuleNames, Multipliers, NormKind, NormOptions, NormPlaces,
    QkNorm, Site, TensorRole,
};

/// The options of a decoder or an encoder: the fields of a `config.json`, with every default filled in.
///
/// It dereferences to its [`ModelDescription`]; only [`Self::describe`] fills in the list of tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Family, sizes and windows.
    pub model: ModelDescription,
    /// Its modules' names in checkpoints.
    pub names: &'static ModuleNames,
    /// Additions to the embeddings of tokens.
    pub embeddings: EmbeddingOptions,
    /// The norms.
    pub norm: NormOptions,
    /// Attention.
    pub attention: AttentionOptions,
    /// The MLP.
    pub mlp: MlpOptions,
    /// Factors of embeddings, branches and logits.
    pub multipliers: Multipliers,
    /// Whether the head is the embedding matrix.
    pub tie_word_embeddings: bool,
}

impl Deref for DecoderConfig {
    type Target = ModelDescription;

    fn deref(&self) -> &ModelDescription {
        &self.model
    }
}

impl DecoderConfig {
    /// The model's description for methods, trainer and planner.
    pub fn describe(&self) -> ModelDescription {
        let (prefix, task_head) = (self.names.prefix, self.names.task_head);
        ModelDescription { tensors: self.tensors(), prefix, task_head, ..self.model.clone() }
    }

    /// The norms of attention and of the MLP of a block.
    pub(crate) fn branch_norms(&self, layer: usize) -> [BranchNorms; 2] {
        let [mut attention, mlp] = self.names.branch_norms(self.norm.places);
        if layer == 0 && self.norm.skips_first {
            attention = BranchNorms::default();
        }
        [attention, mlp]
    }

    /// The differences from Llama, a few words each.
    pub fn differences(&self) -> Vec<String> {
        let Self { norm, attention, mlp, multipliers, embeddings, .. } = self;
        let mut said: Vec<String> = Vec::new();
        let mut say = |is_so: bool, what: &str| {
            if is_so {
                said.push(what.to_owned());
            }
        };
        say(!self.is_causal, "an encoder: tokens see later ones");
        say(embeddings.positions.is_some(), "position embeddings");
        say(embeddings.token_types > 0, "types of tokens");
        say(embeddings.is_normed, "a norm of the embeddings");
        say(norm.kind == NormKind::RmsPlusOne, "norms with 1 + w");
        say(norm.kind == NormKind::Layer, "LayerNorm");
        say(norm.bias, "biases of the norms");
        say(norm.places == NormPlaces::Stream, "norms of the residual stream behind each branch");
        say(norm.skips_first, "no norm before the first attention");
        say(norm.places == NormPlaces::Post, "norms behind the branches");
        say(norm.places == NormPlaces::Both, "norms before and behind the branches");
        say(attention.is_fused, self.projection_name(Component::QueryKeyValue));
        say(attention.qkv_bias, "biases of q, k and v");
        say(attention.output_bias, "a bias of attention's output");
        say(attention.qk_norm == Some(QkNorm::PerHead), "queries and keys normalised per head");
        say(attention.qk_norm == Some(QkNorm::FullWidth), "queries and keys normalised as a whole");
        say(attention.query_scaling.is_some(), "queries that grow with their position");
        say(mlp.kind == MlpKind::FusedGate, self.projection_name(Component::GateUp));
        say(mlp.kind == MlpKind::Plain, "an MLP without a gate");
        say(mlp.bias, "biases of the MLP");
        say(mlp.activation == MlpActivation::Gelu, "GELU");
        say(mlp.activation == MlpActivation::TanhGelu, "GELU by way of tanh");
        for (is_so, what, value) in [
            (attention.scale.is_some(), "scores times", attention.scale),
            (attention.soft_cap.is_some(), "scores capped at", attention.soft_cap),
            (multipliers.embedding != 1.0, "embeddings times", Some(multipliers.embedding)),
            (multipliers.input != 1.0, "embeddings times", Some(multipliers.input)),
            (multipliers.residual != 1.0, "branches times", Some(multipliers.residual)),
            (multipliers.logit_divisor != 1.0, "logits over", Some(multipliers.logit_divisor)),
            (true, "logits capped at", multipliers.logit_soft_cap),
        ] {
            if let Some(value) = value.filter(|_| is_so) {
                said.push(format!("{what} {value}"));
            }
        }
        for rope in &attention.ropes {
            let part = match rope.rotated {
                all if all == self.head_dim => String::new(),
                some => format!(" on {some} of {} coordinates", self.head_dim),
            };
            let stretched = rope.scaling.name().map(|name| format!(", {name}")).unwrap_or_default();
            if attention.ropes.len() > 1 || !part.is_empty() || !stretched.is_empty() {
                said.push(format!("RoPE θ {}{stretched}{part}", rope.theta));
            }
        }
        let without = attention.rope_of_layer.iter().filter(|rope| rope.is_none()).count();
        if without > 0 {
            said.push(format!("{without} layers without RoPE"));
        }
        let windows: BTreeSet<i64> = self.windows.iter().copied().flatten().collect();
        for window in windows {
            let layers = self.windows.iter().filter(|own| **own == Some(window)).count();
            said.push(format!("a window of {window} tokens in {layers} layers"));
        }
        said
    }

    /// The last part of a projection's name.
    fn projection_name(&self, component: Component) -> &'static str {
        let module = self.names.projection(component);
        module.rsplit_once('.').map_or(module, |(_, name)| name)
    }

    /// The projections of a block with their sizes `[out, in]` and whether they have a bias, in the order of a checkpoint.
    pub(crate) fn block_projections(&self) -> Vec<(Component, [i64; 2], bool)> {
        use Component::{Down, Gate, GateUp, Key, Output, Query, QueryKeyValue, Up, Value};
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let AttentionOptions { is_fused, qkv_bias, output_bias, .. } = self.attention;
        let (q, kv) =
            (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let bias = self.mlp.bias;
        let mut projections = match is_fused {
            true => vec![(QueryKeyValue, [q + 2 * kv, d], qkv_bias)],
            false => [(Query, q), (Key, kv), (Value, kv)]
                .map(|(component, rows)| (component, [rows, d], qkv_bias))
                .to_vec(),
        };
        projections.push((Output, [d, q], output_bias));
        match self.mlp.kind {
            MlpKind::Gated => projections.extend([Gate, Up].map(|own| (own, [f, d], bias))),
            MlpKind::FusedGate => projections.push((GateUp, [2 * f, d], bias)),
            MlpKind::Plain => projections.push((Up, [f, d], bias)),
        }
        projections.push((Down, [d, f], bias));
        projections
    }

    /// Every tensor of the model, for reading, listing and for methods' names.
    fn tensors(&self) -> Vec<ModelTensor> {
        let (names, d) = (self.names, self.hidden_size);
        let mut tensors = Vec::new();
        let mut add = |stage: usize, name: String, shape: Vec<i64>, role| {
            tensors.push(ModelTensor { name, shape, role, stage });
        };
        let EmbeddingOptions { positions, token_types, is_normed } = self.embeddings;
        add(
            0,
            format!("{}.weight", names.embeddings),
            vec![self.vocab_size, d],
            TensorRole::Embeddings,
        );
        if let Some(positions) = positions {
            let name = format!("{}.weight", names.positions);
            add(0, name, vec![positions.rows, d], TensorRole::Vector);
        }
        if token_types > 0 {
            let name = format!("{}.weight", names.token_types);
            add(0, name, vec![token_types, d], TensorRole::Vector);
        }
        let parts = |bias| ["weight", "bias"].into_iter().take(1 + usize::from(bias));
        if is_normed {
            for part in parts(self.norm.bias) {
                add(0, format!("{}.{part}", names.embedding_norm), vec![d], TensorRole::Vector);
            }
        }
        let projections = self.block_projections();
        for layer in 0..self.num_hidden_layers {
            let prefix = format!("{}.{layer}", names.layers);
            for &(component, [rows, columns], bias) in &projections {
                let module = format!("{prefix}.{}", names.projection(component));
                let role = TensorRole::Projection(Site { layer, component });
                add(layer, format!("{module}.weight"), vec![rows, columns], role);
                if bias {
                    add(layer, format!("{module}.bias"), vec![rows], TensorRole::Vector);
                }
            }
            for name in self.branch_norms(layer).into_iter().flat_map(BranchNorms::names) {
                for part in parts(self.norm.bias) {
                    let name = format!("{prefix}.{name}.{part}");
                    let role =
                        if part == "weight" { TensorRole::Norm(layer) } else { TensorRole::Vector };
                    add(layer, name, vec![d], role);
                }
            }
            let (q, kv) = (
                self.num_attention_heads * self.head_dim,
                self.num_key_value_heads * self.head_dim,
            );
            let sizes = self.attention.qk_norm.map(|norm| match norm {
                QkNorm::PerHead => [self.head_dim; 2],
                QkNorm::FullWidth => [q, kv],
            });
            for (name, size) in ["q_norm", "k_norm"].into_iter().zip(sizes.into_iter().flatten()) {
                let name = format!("{prefix}.self_attn.{name}.weight");
                add(layer, name, vec![size], TensorRole::Vector);
            }
        }
        let last = self.num_hidden_layers;
        if let Some(norm) = names.final_norm {
            for part in parts(self.norm.bias) {
                add(last, format!("{norm}.{part}"), vec![d], TensorRole::Vector);
            }
        }
        if let Some(head) = names.head.filter(|_| !self.tie_word_embeddings) {
            add(last, format!("{head}.weight"), vec![self.vocab_size, d], TensorRole::Head);
        }
        tensors
    }
}
