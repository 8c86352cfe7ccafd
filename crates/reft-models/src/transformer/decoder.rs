use std::collections::HashMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::site::Component::{Down, Gate, GateUp, Key, Output, Query, QueryKeyValue, Up, Value};
use crate::transformer::attention::{Attention, AttentionInput};
use crate::transformer::decoder_block::{Branch, DecoderBlock};
use crate::transformer::forward::DecoderForward;
use crate::transformer::mlp::{Mlp, MlpInput};
use crate::transformer::rope::Rope;
use crate::weights::checkpoint::{Usage, Weights};
use crate::{
    Component, DecoderConfig, Forward, Head, Linear, Model, ModelDescription, ModelTensor,
    Multipliers, Pass, Result, RmsNorm, Span, TensorRole, Weight,
};

/// A frozen decoder with hooks at every site.
///
/// Llama, Mistral, Qwen, Gemma, SmolLM3, Granite, OLMo and Phi-3 are this decoder with other options ([`DecoderConfig`]). One forward, [`Model::hidden_states`], serves training, evaluation, prefill and decoding.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    pub(crate) embed_tokens: Weight, // [v, d]
    pub(crate) blocks: Vec<DecoderBlock>,
    pub(crate) norm: RmsNorm,
    head: Weight,     // [v, d]; embed_tokens if they are tied
    ropes: Vec<Rope>, // one for each kind of layer
    pub(crate) embedding_scale: f64,
    tensors: Vec<(String, Weight)>, // all of them, in the order of the description
    description: ModelDescription,
}

impl Decoder {
    /// Reads a model from a Hugging Face directory or a GGUF file, in the kind and on the device asked for.
    ///
    /// # Errors
    /// If `config.json` is wrong, or tensors are missing, unexpected or of another shape: all of them by name.
    pub fn open(path: &Path, kind: Kind, device: Device) -> Result<Self> {
        Self::from_weights(DecoderConfig::open(path)?, &Weights::open(path)?, kind, device)
    }

    /// Checks that the model which `config` describes can be made of the tensors of a checkpoint, without reading them. Returns the
    /// configuration in force: where embeddings and head are to be one and the checkpoint holds two that differ, they are two, as in
    /// transformers.
    ///
    /// # Errors
    /// If tensors are missing, unexpected or of another shape: all of them by name.
    pub fn check(config: DecoderConfig, weights: &Weights) -> Result<DecoderConfig> {
        Ok(Stored::new(config, weights)?.config)
    }

    /// The model that `config` describes with the tensors of a checkpoint, its matrices held as [`Weights::held_as`] says.
    ///
    /// # Errors
    /// As [`Self::check`]; if a file cannot be read.
    pub fn from_weights(
        config: DecoderConfig,
        weights: &Weights,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let Stored { config, description, is_stored_as_head } = Stored::new(config, weights)?;
        let read = |tensor: &ModelTensor| -> Result<(String, Weight)> {
            let usage = match tensor.role {
                TensorRole::Head | TensorRole::Projection(_) => Usage::Product,
                TensorRole::Embeddings if config.tie_word_embeddings => Usage::Product,
                TensorRole::Embeddings | TensorRole::Vector => Usage::Lookup,
            };
            let weight = weights.load_weight(
                stored_name(tensor, is_stored_as_head),
                usage,
                (kind, device),
            )?;
            Ok((tensor.name.clone(), weight))
        };
        // Random weights are drawn as they are read: the head first, though it is the last of the tensors.
        let (head, others): (Vec<_>, Vec<_>) =
            description.tensors.iter().partition(|tensor| tensor.role == TensorRole::Head);
        let mut tensors =
            head.iter().chain(&others).map(|tensor| read(tensor)).collect::<Result<Vec<_>>>()?;
        tensors.rotate_left(head.len());
        let by_name: HashMap<&str, &Weight> =
            tensors.iter().map(|(name, weight)| (name.as_str(), weight)).collect();
        let find = |name: String| by_name.get(name.as_str()).map(|weight| weight.shallow_clone());
        let weight = |name: &str| {
            find(format!("{name}.weight")).expect("invariant: the description has every tensor")
        };
        let linear = |name: String| {
            let bias = find(format!("{name}.bias")).map(|bias| bias.dense());
            Linear { weight: weight(&name), bias }
        };
        let (attention, mlp) = (&config.attention, &config.mlp);
        let norm = |name: String| RmsNorm {
            weight: weight(&name).dense(),
            eps: config.norm.eps,
            kind: config.norm.kind,
        };
        let block = |layer: usize| {
            let at = |part: &str| format!("model.layers.{layer}.{part}");
            let projection = |part: &str, own: Component| linear(at(&format!("{part}.{own}")));
            let of_attention = |own| projection("self_attn", own);
            let of_mlp = |own| projection("mlp", own);
            let qk_norm = |kind| (kind, norm(at("self_attn.q_norm")), norm(at("self_attn.k_norm")));
            let branch = |[before, after]: [Option<&str>; 2]| Branch {
                norm_before: before.map(|name| norm(at(name))),
                norm_after: after.map(|name| norm(at(name))),
                multiplier: config.multipliers.residual,
            };
            let [attention_branch, mlp_branch] = config.norm.places.branches().map(branch);
            DecoderBlock {
                layer,
                attention_branch,
                attention: Attention {
                    input: if attention.is_fused {
                        AttentionInput::Fused(of_attention(QueryKeyValue))
                    } else {
                        AttentionInput::Separate {
                            query: of_attention(Query),
                            key: of_attention(Key),
                            value: of_attention(Value),
                        }
                    },
                    output: of_attention(Output),
                    qk_norm: attention.qk_norm.map(qk_norm),
                    rope: attention.rope_of_layer[layer],
                    scale: attention.scale,
                    soft_cap: attention.soft_cap,
                    n_h: config.num_attention_heads,
                    n_kv: config.num_key_value_heads,
                    d_h: config.head_dim,
                },
                mlp_branch,
                mlp: Mlp {
                    input: if mlp.is_fused {
                        MlpInput::Fused(of_mlp(GateUp))
                    } else {
                        MlpInput::Separate { gate: of_mlp(Gate), up: of_mlp(Up) }
                    },
                    down: of_mlp(Down),
                    activation: mlp.activation,
                },
            }
        };
        // as a number of the model's kind, which transformers rounds it to
        let embedding_scale = Tensor::from(config.multipliers.embedding).to_kind(kind);
        Ok(Self {
            embed_tokens: weight("model.embed_tokens"),
            blocks: (0..config.num_hidden_layers).map(block).collect(),
            norm: norm("model.norm".into()),
            head: weight(if config.tie_word_embeddings { "model.embed_tokens" } else { "lm_head" }),
            ropes: attention.ropes.iter().map(|rope| Rope::new(rope.clone(), device)).collect(),
            embedding_scale: embedding_scale.double_value(&[]),
            config,
            tensors,
            description,
        })
    }

    /// The model's options.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    pub(crate) fn pass<'a>(&'a self, span: Span<'a>, prefix: usize) -> Pass<'a> {
        Pass::new(span, &self.config, &self.ropes, prefix, (self.kind(), self.device()))
    }
}

const EMBEDDINGS: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// A model as a checkpoint holds it.
struct Stored {
    config: DecoderConfig,
    description: ModelDescription,
    /// Whether embeddings and head are one, which is stored under the head's name.
    is_stored_as_head: bool,
}

impl Stored {
    fn new(mut config: DecoderConfig, weights: &Weights) -> Result<Self> {
        let [has_embeddings, has_head] =
            [EMBEDDINGS, HEAD].map(|name| weights.shape(name).is_some());
        if config.tie_word_embeddings && has_embeddings && has_head {
            config.tie_word_embeddings = weights.are_equal(EMBEDDINGS, HEAD)?;
        }
        let description = config.describe();
        let is_stored_as_head = config.tie_word_embeddings && !has_embeddings && has_head;
        let stored = |tensor| (stored_name(tensor, is_stored_as_head), tensor.shape.as_slice());
        // constants that some checkpoints carry, and a copy of a tied head
        weights.check(description.tensors.iter().map(stored), &|name| {
            is_constant(weights, name) || (config.tie_word_embeddings && name == HEAD)
        })?;
        Ok(Self { config, description, is_stored_as_head })
    }
}

/// The name that a tensor has in a checkpoint.
fn stored_name(tensor: &ModelTensor, is_stored_as_head: bool) -> &str {
    match tensor.role {
        TensorRole::Embeddings if is_stored_as_head => HEAD,
        _ => &tensor.name,
    }
}

/// Whether a tensor of a checkpoint changes no number: tables that follow from the configuration, and scales of 1.
fn is_constant(weights: &Weights, name: &str) -> bool {
    const TABLES: [&str; 3] =
        ["rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached"];
    const SCALES: [&str; 3] = [".q_scale", ".k_scale", ".v_scale"];
    let is_one = || {
        let scale = weights.load(name, Kind::Float, Device::Cpu);
        scale.is_ok_and(|scale| scale.eq(1.0).all().int64_value(&[]) == 1)
    };
    TABLES.iter().any(|table| name.ends_with(table))
        || (SCALES.iter().any(|scale| name.ends_with(scale)) && is_one())
}

impl Model for Decoder {
    fn description(&self) -> &ModelDescription {
        &self.description
    }

    fn kind(&self) -> Kind {
        self.norm.weight.kind()
    }

    fn device(&self) -> Device {
        self.norm.weight.device()
    }

    fn weights(&self) -> Vec<(String, Weight)> {
        self.tensors.iter().map(|(name, weight)| (name.clone(), weight.shallow_clone())).collect()
    }

    fn forward<'a>(&'a self, span: &Span<'a>, prefix_length: usize) -> Box<dyn Forward<'a> + 'a> {
        Box::new(DecoderForward::new(self, span, prefix_length))
    }

    fn head(&self) -> Head {
        let Multipliers { logit_divisor, logit_soft_cap, .. } = self.config.multipliers;
        Head::new(self.head.dense(), None).scaled(logit_divisor, logit_soft_cap)
    }

    fn trains_head(&self) -> bool {
        self.head.requires_grad()
    }
}
