use std::collections::BTreeSet;
use std::ops::Deref;

use crate::{
    AttentionOptions, Component, MlpActivation, MlpOptions, ModelDescription, ModelTensor,
    Multipliers, NormKind, NormOptions, NormPlaces, QkNorm, Site, TensorRole,
};

/// The options of a decoder: what a `config.json` says, with every default filled in.
///
/// It is used like the [`ModelDescription`] in it, whose tensors are listed by [`Self::describe`].
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Family, sizes and windows.
    pub model: ModelDescription,
    /// The norms.
    pub norm: NormOptions,
    /// Attention.
    pub attention: AttentionOptions,
    /// The MLP.
    pub mlp: MlpOptions,
    /// What embeddings, branches and logits are multiplied with.
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
    /// What methods, trainer and planner know of the decoder.
    pub fn describe(&self) -> ModelDescription {
        ModelDescription { tensors: self.tensors(), ..self.model.clone() }
    }

    /// What the decoder does otherwise than Llama, a few words each.
    pub fn differences(&self) -> Vec<String> {
        let Self { norm, attention, mlp, multipliers, .. } = self;
        let mut said: Vec<String> = Vec::new();
        let mut say = |is_so: bool, what: &str| {
            if is_so {
                said.push(what.to_owned());
            }
        };
        say(norm.kind == NormKind::RmsPlusOne, "norms with 1 + w");
        say(norm.places == NormPlaces::Post, "norms behind the branches");
        say(norm.places == NormPlaces::Both, "norms before and behind the branches");
        say(attention.is_fused, "qkv_proj");
        say(attention.qkv_bias, "biases of q, k and v");
        say(attention.output_bias, "a bias of attention's output");
        say(attention.qk_norm == Some(QkNorm::PerHead), "queries and keys normalised per head");
        say(attention.qk_norm == Some(QkNorm::FullWidth), "queries and keys normalised as a whole");
        say(attention.query_scaling.is_some(), "queries that grow with their position");
        say(mlp.is_fused, "gate_up_proj");
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

    /// Every tensor of the decoder: what is read, listed, and named by methods.
    fn tensors(&self) -> Vec<ModelTensor> {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let AttentionOptions { is_fused, qkv_bias, output_bias, qk_norm, .. } = self.attention;
        let (q, kv) =
            (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let mut projections = Vec::new();
        if is_fused {
            projections.push((Component::QueryKeyValue, "self_attn", q + 2 * kv, d, qkv_bias));
        } else {
            for (component, rows) in
                [(Component::Query, q), (Component::Key, kv), (Component::Value, kv)]
            {
                projections.push((component, "self_attn", rows, d, qkv_bias));
            }
        }
        projections.push((Component::Output, "self_attn", d, q, output_bias));
        if self.mlp.is_fused {
            projections.push((Component::GateUp, "mlp", 2 * f, d, self.mlp.bias));
        } else {
            for component in [Component::Gate, Component::Up] {
                projections.push((component, "mlp", f, d, self.mlp.bias));
            }
        }
        projections.push((Component::Down, "mlp", d, f, self.mlp.bias));
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: Vec<i64>, role| {
            tensors.push(ModelTensor { name, shape, role });
        };
        add("model.embed_tokens.weight".into(), vec![self.vocab_size, d], TensorRole::Embeddings);
        for layer in 0..self.num_hidden_layers {
            let prefix = format!("model.layers.{layer}");
            for &(component, part, rows, columns, bias) in &projections {
                let role = TensorRole::Projection(Site { layer, component });
                let name = format!("{prefix}.{part}.{component}.weight");
                add(name, vec![rows, columns], role);
                if bias {
                    let name = format!("{prefix}.{part}.{component}.bias");
                    add(name, vec![rows], TensorRole::Vector);
                }
            }
            for name in self.norm.places.branches().into_iter().flatten().flatten() {
                add(format!("{prefix}.{name}.weight"), vec![d], TensorRole::Vector);
            }
            let sizes = qk_norm.map(|norm| match norm {
                QkNorm::PerHead => [self.head_dim; 2],
                QkNorm::FullWidth => [q, kv],
            });
            for (name, size) in ["q_norm", "k_norm"].into_iter().zip(sizes.into_iter().flatten()) {
                let name = format!("{prefix}.self_attn.{name}.weight");
                add(name, vec![size], TensorRole::Vector);
            }
        }
        add("model.norm.weight".into(), vec![d], TensorRole::Vector);
        if !self.tie_word_embeddings {
            add("lm_head.weight".into(), vec![self.vocab_size, d], TensorRole::Head);
        }
        tensors
    }
}

impl NormPlaces {
    /// The norms of attention and of the MLP: the module before the branch, and the one behind it.
    pub(crate) fn branches(self) -> [[Option<&'static str>; 2]; 2] {
        const AFTER_ATTENTION: &str = "post_attention_layernorm";
        const AFTER_MLP: &str = "post_feedforward_layernorm";
        match self {
            Self::Pre => [[Some("input_layernorm"), None], [Some(AFTER_ATTENTION), None]],
            Self::Post => [[None, Some(AFTER_ATTENTION)], [None, Some(AFTER_MLP)]],
            Self::Both => [
                [Some("input_layernorm"), Some(AFTER_ATTENTION)],
                [Some("pre_feedforward_layernorm"), Some(AFTER_MLP)],
            ],
        }
    }
}
