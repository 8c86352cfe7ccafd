use std::collections::HashMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::site::Component::{Down, Gate, GateUp, Key, Output, Query, QueryKeyValue, Up, Value};
use crate::transformer::attention::{Attention, AttentionInput};
use crate::transformer::config::module_names::BranchNorms;
use crate::transformer::decoder_block::{Branch, DecoderBlock};
use crate::transformer::embeddings::Embeddings;
use crate::transformer::forward::DecoderForward;
use crate::transformer::mlp::{Mlp, MlpInput};
use crate::transformer::norm::Norm;
use crate::transformer::rope::Rope;
use crate::transformer::stored::Stored;
use crate::weights::checkpoint::Weights;
use crate::{
    Component, DecoderConfig, Forward, Head, Linear, MlpKind, Model, ModelDescription, ModelTensor,
    Multipliers, Placement, Result, Span, TensorRole, Weight,
};

/// A frozen decoder, or encoder, with hooks at every site.
///
/// Llama, Mistral, Qwen, Gemma, SmolLM3, Granite, OLMo and Phi-3 are this decoder with different options ([`DecoderConfig`]). So are the
/// encoders BERT, RoBERTa, DistilBERT and ModernBERT, with attention in both directions and without a head. One forward,
/// [`Model::hidden_states`], serves training, evaluation, prefill and decoding.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    pub(crate) embeddings: Embeddings,
    pub(crate) blocks: Vec<DecoderBlock>,
    pub(crate) norm: Option<Norm>,    // of the last block's output
    head: Option<Weight>,             // [v, d]; the embeddings if they are tied; none of an encoder
    pub(crate) ropes: Vec<Vec<Rope>>, // of each part one for each kind of layer
    kind: Kind,
    placement: Placement,
    tensors: Vec<(String, Weight)>, // all of them, in the order of the description
    description: ModelDescription,
}

impl Decoder {
    /// Reads a model from a Hugging Face directory or a GGUF file, in the given kind, on one device or several ([`Placement`]).
    ///
    /// # Errors
    /// [`Error::Placement`](crate::Error::Placement) if a part of the placement gets no block; if `config.json` is wrong; if tensors are missing,
    /// unexpected or of another shape: all of them by name.
    pub fn open(path: &Path, kind: Kind, placement: impl Into<Placement>) -> Result<Self> {
        Self::from_weights(DecoderConfig::open(path)?, &Weights::open(path)?, kind, placement)
    }

    /// Checks that a checkpoint has the tensors of the model of `config`, without reading them. Returns the configuration to use: if `config`
    /// ties the head to the embeddings and the checkpoint holds a different head, they are not tied, as in transformers.
    ///
    /// # Errors
    /// If tensors are missing, unexpected or of another shape: all of them by name.
    pub fn check(config: DecoderConfig, weights: &Weights) -> Result<DecoderConfig> {
        Ok(Stored::new(config, weights)?.config)
    }

    /// The model of `config` with the tensors of a checkpoint, its matrices stored according to [`Weights::held_as`].
    ///
    /// # Errors
    /// As [`Self::check`]; if a file cannot be read.
    pub fn from_weights(
        config: DecoderConfig,
        weights: &Weights,
        kind: Kind,
        placement: impl Into<Placement>,
    ) -> Result<Self> {
        let Stored { config, description, names } = Stored::new(config, weights)?;
        let mut placement: Placement = placement.into();
        placement.check(config.num_hidden_layers)?;
        if config.tie_word_embeddings && config.names.head.is_some() {
            placement = placement.with_head_first();
        }
        let read = |(tensor, stored): (&ModelTensor, &String)| -> Result<(String, Weight)> {
            let device = placement.device(tensor.stage);
            let is_of_tokens = match tensor.role {
                TensorRole::Head | TensorRole::Embeddings => true,
                TensorRole::Projection(_) => false,
                TensorRole::Norm(_) | TensorRole::Vector => {
                    let tensor_of = weights.load(stored, kind, device)?;
                    return Ok((tensor.name.clone(), Weight::Dense(tensor_of)));
                }
            };
            let weight = weights.load_weight(stored, is_of_tokens, (kind, device))?;
            Ok((tensor.name.clone(), weight))
        };
        // Random weights are drawn as they are read: the head first, though it is the last of the tensors.
        let stored = description.tensors.iter().zip(&names);
        let (head, others): (Vec<_>, Vec<_>) =
            stored.partition(|(tensor, _)| tensor.role == TensorRole::Head);
        let mut tensors =
            head.iter().chain(&others).copied().map(read).collect::<Result<Vec<_>>>()?;
        tensors.rotate_left(head.len());
        let by_name: HashMap<&str, &Weight> =
            tensors.iter().map(|(name, weight)| (name.as_str(), weight)).collect();
        let find = |name: String| by_name.get(name.as_str()).map(|weight| weight.shallow_clone());
        let weight = |name: &str| {
            find(format!("{name}.weight")).expect("invariant: the description has every tensor")
        };
        let bias = |name: &str| find(format!("{name}.bias")).map(|bias| bias.dense());
        let norm = |name: String| Norm {
            weight: weight(&name).dense(),
            bias: bias(&name),
            eps: config.norm.eps,
            kind: config.norm.kind,
        };
        let (names, attention, mlp) = (config.names, &config.attention, &config.mlp);
        let block = |layer: usize| {
            let at = |part: &str| format!("{}.{layer}.{part}", names.layers);
            let projection = |own: Component| {
                let module = at(names.projection(own));
                Linear { weight: weight(&module), bias: bias(&module) }
            };
            let qk_norm = |kind| (kind, norm(at("self_attn.q_norm")), norm(at("self_attn.k_norm")));
            let branch = |BranchNorms { before, after, stream }| {
                let [norm_before, norm_after, norm_of_stream] =
                    [before, after, stream].map(|name| name.map(|name| norm(at(name))));
                let multiplier = config.multipliers.residual;
                Branch { norm_before, norm_after, norm_of_stream, multiplier }
            };
            let [attention_branch, mlp_branch] = config.branch_norms(layer).map(branch);
            DecoderBlock {
                layer,
                attention_branch,
                attention: Attention {
                    input: if attention.is_fused {
                        AttentionInput::Fused(projection(QueryKeyValue))
                    } else {
                        AttentionInput::Separate {
                            query: projection(Query),
                            key: projection(Key),
                            value: projection(Value),
                        }
                    },
                    output: projection(Output),
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
                    input: match mlp.kind {
                        MlpKind::Gated => {
                            MlpInput::Separate { gate: projection(Gate), up: projection(Up) }
                        }
                        MlpKind::FusedGate => MlpInput::Fused(projection(GateUp)),
                        MlpKind::Plain => MlpInput::Plain(projection(Up)),
                    },
                    down: projection(Down),
                    activation: mlp.activation,
                },
            }
        };
        // rounded to the model's kind, as in transformers
        let token_scale = Tensor::from(config.multipliers.embedding).to_kind(kind);
        let added = config.embeddings;
        let embeddings = Embeddings {
            tokens: weight(names.embeddings),
            token_scale: token_scale.double_value(&[]),
            scale: config.multipliers.input,
            positions: added.positions.map(|own| (own, weight(names.positions).dense())),
            token_types: (added.token_types > 0).then(|| weight(names.token_types).dense()),
            norm: added.is_normed.then(|| norm(names.embedding_norm.into())),
        };
        let ropes = |device: Device| {
            attention.ropes.iter().map(|rope| Rope::new(rope.clone(), device)).collect()
        };
        let head = |head| weight(if config.tie_word_embeddings { names.embeddings } else { head });
        Ok(Self {
            embeddings,
            blocks: (0..config.num_hidden_layers).map(block).collect(),
            norm: names.final_norm.map(|name| norm(name.into())),
            head: names.head.map(head),
            ropes: placement.devices().map(ropes).collect(),
            kind,
            placement,
            config,
            tensors,
            description,
        })
    }

    /// The model's options.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }
}

impl Model for Decoder {
    fn description(&self) -> &ModelDescription {
        &self.description
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn placement(&self) -> &Placement {
        &self.placement
    }

    fn weights(&self) -> Vec<(String, Weight)> {
        self.tensors.iter().map(|(name, weight)| (name.clone(), weight.shallow_clone())).collect()
    }

    fn forward<'a>(&'a self, span: &Span<'a>, prefix_length: usize) -> Box<dyn Forward<'a> + 'a> {
        Box::new(DecoderForward::new(self, span, prefix_length))
    }

    fn head(&self) -> Head {
        let Multipliers { logit_divisor, logit_soft_cap, .. } = self.config.multipliers;
        let head = self.head.as_ref().expect("a model that predicts tokens, as was to be checked");
        Head::new(head.shallow_clone(), None).scaled(logit_divisor, logit_soft_cap)
    }

    fn trains_head(&self) -> bool {
        self.head.as_ref().is_some_and(Weight::requires_grad)
    }
}
