use std::collections::HashMap;
use std::path::Path;

use tch::{Device, Kind};

use crate::transformer::attention::Attention;
use crate::transformer::decoder_block::DecoderBlock;
use crate::transformer::forward::DecoderForward;
use crate::transformer::mlp::Mlp;
use crate::transformer::rope::Rope;
use crate::weights::checkpoint::{Usage, Weights};
use crate::{
    DecoderConfig, Forward, Head, Linear, Model, ModelDescription, ModelTensor, Pass, Result,
    RmsNorm, Span, TensorRole, Weight,
};

/// A frozen Llama-family decoder with hooks at every site.
///
/// Llama 1 to 3.x, TinyLlama, SmolLM2, Mistral, Qwen2 and Qwen3 are this decoder with other options
/// ([`DecoderConfig`]). One forward, [`Model::hidden_states`], serves training, evaluation, prefill and decoding.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    pub(crate) embed_tokens: Weight, // [v, d]
    pub(crate) blocks: Vec<DecoderBlock>,
    pub(crate) norm: RmsNorm,
    head: Weight, // [v, d]; embed_tokens if they are tied
    rope: Rope,
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

    /// The model that `config` describes with the tensors of a checkpoint, its matrices held as [`Weights::held_as`] says.
    ///
    /// # Errors
    /// If tensors are missing, unexpected or of another shape: all of them by name.
    pub fn from_weights(
        config: DecoderConfig,
        weights: &Weights,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let description = config.describe();
        let shapes = description.tensors.iter().map(|tensor| (&*tensor.name, &*tensor.shape));
        weights.check(shapes, &|name| {
            // constants that some checkpoints carry, and a copy of a tied head
            name.ends_with("rotary_emb.inv_freq")
                || (config.tie_word_embeddings && name == "lm_head.weight")
        })?;
        let read = |tensor: &ModelTensor| -> Result<(String, Weight)> {
            let usage = match tensor.role {
                TensorRole::Head | TensorRole::Projection(_) => Usage::Product,
                TensorRole::Embeddings if config.tie_word_embeddings => Usage::Product,
                TensorRole::Embeddings | TensorRole::Vector => Usage::Lookup,
            };
            let weight = weights.load_weight(&tensor.name, usage, (kind, device))?;
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
        let norm =
            |name: String| RmsNorm { weight: weight(&name).dense(), eps: config.rms_norm_eps };
        let block = |layer: usize| {
            let at = |part: &str| format!("model.layers.{layer}.{part}");
            let qk_norm = || (norm(at("self_attn.q_norm")), norm(at("self_attn.k_norm")));
            DecoderBlock {
                layer,
                attention_norm: norm(at("input_layernorm")),
                attention: Attention {
                    query: linear(at("self_attn.q_proj")),
                    key: linear(at("self_attn.k_proj")),
                    value: linear(at("self_attn.v_proj")),
                    output: linear(at("self_attn.o_proj")),
                    qk_norm: config.qk_norm.then(qk_norm),
                    n_h: config.num_attention_heads,
                    n_kv: config.num_key_value_heads,
                    d_h: config.head_dim,
                },
                mlp_norm: norm(at("post_attention_layernorm")),
                mlp: Mlp {
                    gate: linear(at("mlp.gate_proj")),
                    up: linear(at("mlp.up_proj")),
                    down: linear(at("mlp.down_proj")),
                },
            }
        };
        Ok(Self {
            embed_tokens: weight("model.embed_tokens"),
            blocks: (0..config.num_hidden_layers).map(block).collect(),
            norm: norm("model.norm".into()),
            head: weight(if config.tie_word_embeddings { "model.embed_tokens" } else { "lm_head" }),
            rope: Rope::new(&config, device),
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
        Pass::new(span, &self.config, &self.rope, prefix, (self.kind(), self.device()))
    }
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
        Head::new(self.head.dense(), None)
    }

    fn trains_head(&self) -> bool {
        self.head.requires_grad()
    }
}
