use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::attention::Attention;
use crate::config::DecoderConfig;
use crate::decoder_block::DecoderBlock;
use crate::forward::Forward;
use crate::hooks::Hooks;
use crate::kv_cache::KvCache;
use crate::layout::Span;
use crate::linear::Linear;
use crate::mlp::Mlp;
use crate::pass::Pass;
use crate::past::Past;
use crate::rms_norm::RmsNorm;
use crate::rope::Rope;
use crate::weight::Weight;
use crate::weights::{Usage, Weights};
use crate::{Error, Result};

/// A frozen Llama-family decoder with hooks at every site.
///
/// Llama 1 to 3.x, TinyLlama, SmolLM2, Mistral, Qwen2 and Qwen3 are this decoder with other options
/// ([`DecoderConfig`]). One forward, [`Self::hidden_states`], serves training, evaluation, prefill and decoding.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    embed_tokens: Weight, // [v, d]
    blocks: Vec<DecoderBlock>,
    norm: RmsNorm,
    lm_head: Option<Linear>, // absent if tied: then embed_tokens serves
    rope: Rope,
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
        weights.check(&config.tensor_shapes(), &|name| {
            // constants that some checkpoints carry, and a copy of a tied head
            name.ends_with("rotary_emb.inv_freq")
                || (config.tie_word_embeddings && name == "lm_head.weight")
        })?;
        let load = |name: &str| weights.load(name, kind, device);
        let weight = |name: &str| weights.load_weight(name, Usage::Product, (kind, device));
        let linear = |name: &str, has_bias: bool| -> Result<Linear> {
            let bias = has_bias.then(|| load(&format!("{name}.bias"))).transpose()?;
            Ok(Linear { weight: weight(&format!("{name}.weight"))?, bias })
        };
        let norm = |name: &str| -> Result<RmsNorm> {
            Ok(RmsNorm { weight: load(&format!("{name}.weight"))?, eps: config.rms_norm_eps })
        };
        let block = |layer: usize| -> Result<DecoderBlock> {
            let attention = format!("model.layers.{layer}.self_attn");
            let mlp = format!("model.layers.{layer}.mlp");
            let qk_norm = if config.qk_norm {
                Some((norm(&format!("{attention}.q_norm"))?, norm(&format!("{attention}.k_norm"))?))
            } else {
                None
            };
            Ok(DecoderBlock {
                layer,
                attention_norm: norm(&format!("model.layers.{layer}.input_layernorm"))?,
                attention: Attention {
                    query: linear(&format!("{attention}.q_proj"), config.qkv_bias)?,
                    key: linear(&format!("{attention}.k_proj"), config.qkv_bias)?,
                    value: linear(&format!("{attention}.v_proj"), config.qkv_bias)?,
                    output: linear(&format!("{attention}.o_proj"), config.attention_output_bias)?,
                    qk_norm,
                    n_h: config.num_attention_heads,
                    n_kv: config.num_key_value_heads,
                    d_h: config.head_dim,
                },
                mlp_norm: norm(&format!("model.layers.{layer}.post_attention_layernorm"))?,
                mlp: Mlp {
                    gate: linear(&format!("{mlp}.gate_proj"), config.mlp_bias)?,
                    up: linear(&format!("{mlp}.up_proj"), config.mlp_bias)?,
                    down: linear(&format!("{mlp}.down_proj"), config.mlp_bias)?,
                },
            })
        };
        let lm_head = if config.tie_word_embeddings {
            None
        } else {
            Some(Linear { weight: weight("lm_head.weight")?, bias: None })
        };
        Ok(Self {
            embed_tokens: weights.load_weight(
                "model.embed_tokens.weight",
                if config.tie_word_embeddings { Usage::Product } else { Usage::Lookup },
                (kind, device),
            )?,
            blocks: (0..config.num_hidden_layers).map(block).collect::<Result<_>>()?,
            norm: norm("model.norm")?,
            lm_head,
            rope: Rope::new(&config, device),
            config,
        })
    }

    /// The model's options.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The kind of the residual stream, of the weights, and of what quantised weights are expanded to.
    pub fn kind(&self) -> Kind {
        self.norm.weight.kind()
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.norm.weight.device()
    }

    /// Bytes that the weights take.
    pub fn weight_bytes(&self) -> usize {
        self.weights().iter().map(|(_, weight)| weight.bytes()).sum()
    }

    /// Whether some weights are quantised: a forward with autograd then keeps what they are expanded to until its backward, so a
    /// training that wants to save memory goes block by block.
    pub fn is_quantised(&self) -> bool {
        self.weights().iter().any(|(_, weight)| weight.tensor().is_none())
    }

    /// An empty cache for generation: `batch_size` rows of up to `capacity` columns, a prefix included.
    pub fn kv_cache(&self, batch_size: i64, capacity: i64) -> KvCache {
        KvCache::new(&self.config, batch_size, capacity, (self.kind(), self.device()))
    }

    /// Checks that a token id is one of the vocabulary.
    ///
    /// # Errors
    /// [`Error::TokenId`].
    pub fn check_token(&self, id: i64) -> Result<()> {
        let vocab_size = self.config.vocab_size;
        if (0..vocab_size).contains(&id) {
            return Ok(());
        }
        Err(Error::TokenId { id, vocab_size })
    }

    /// Hidden states `[b, t, d]` after the last block and the final norm.
    ///
    /// `input_ids` `[b, t]` are those of the span's columns. With a cache, its columns are attended to, and the span's are
    /// appended; a span that does not begin in column 0 needs one.
    ///
    /// # Errors
    /// What a hook refuses, with its site; [`Error::CacheFull`].
    pub fn hidden_states(
        &self,
        input_ids: &Tensor,
        span: &Span,
        mut cache: Option<&mut KvCache>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor> {
        let prefix = hooks.prefix_length();
        let appended =
            span.width() as i64 + if span.columns.start == 0 { prefix as i64 } else { 0 };
        if let Some(room) = cache.as_deref().map(KvCache::room).filter(|room| *room < appended) {
            return Err(Error::CacheFull { room, needed: appended });
        }
        let forward = self.forward(span, prefix);
        let past = cache.as_deref_mut().map(|cache| cache as &mut dyn Past);
        let h = forward.run(0..self.blocks.len(), forward.embed(input_ids), past, hooks)?;
        if let Some(cache) = cache {
            cache.advance(appended);
        }
        forward.finish(h, hooks)
    }

    /// A forward over a span, to be run stage by stage, with the [`Hooks::prefix_length`] of the hooks that it will be run with.
    pub fn forward<'a>(&'a self, span: &Span<'a>, prefix_length: usize) -> Forward<'a> {
        Forward::new(self, span, prefix_length)
    }

    /// Logits `[.., v]` in f32 of hidden states `[.., d]`.
    pub fn logits(&self, h: &Tensor) -> Tensor {
        self.head().logits(h)
    }

    /// The head, ready for several products: if it is quantised, it is expanded once for all of them.
    pub fn head(&self) -> Head {
        Head { weight: self.head_weight().dense() }
    }

    /// Whether gradients are wanted of the head's weights, which are the embeddings' if they are tied.
    pub fn trains_head(&self) -> bool {
        self.head_weight().requires_grad()
    }

    fn head_weight(&self) -> &Weight {
        self.lm_head.as_ref().map_or(&self.embed_tokens, |head| &head.weight)
    }

    pub(crate) fn pass<'a>(&'a self, span: Span<'a>, prefix: usize) -> Pass<'a> {
        Pass::new(span, &self.config, &self.rope, prefix, (self.kind(), self.device()))
    }

    pub(crate) fn embed_tokens(&self) -> &Weight {
        &self.embed_tokens
    }

    pub(crate) fn blocks(&self) -> &[DecoderBlock] {
        &self.blocks
    }

    pub(crate) fn norm(&self) -> &RmsNorm {
        &self.norm
    }

    /// Every weight by its checkpoint name; they share storage with the model's.
    pub fn weights(&self) -> Vec<(String, Weight)> {
        let tensor = |tensor: &Tensor| Weight::Dense(tensor.shallow_clone());
        let mut weights = Vec::new();
        let mut add = |name: String, weight: Weight| weights.push((name, weight));
        add("model.embed_tokens.weight".into(), self.embed_tokens.shallow_clone());
        for block in &self.blocks {
            let prefix = format!("model.layers.{}", block.layer);
            let (a, m) = (&block.attention, &block.mlp);
            let linears = [
                ("self_attn.q_proj", &a.query),
                ("self_attn.k_proj", &a.key),
                ("self_attn.v_proj", &a.value),
                ("self_attn.o_proj", &a.output),
                ("mlp.gate_proj", &m.gate),
                ("mlp.up_proj", &m.up),
                ("mlp.down_proj", &m.down),
            ];
            for (name, linear) in linears {
                add(format!("{prefix}.{name}.weight"), linear.weight.shallow_clone());
                if let Some(bias) = &linear.bias {
                    add(format!("{prefix}.{name}.bias"), tensor(bias));
                }
            }
            add(format!("{prefix}.input_layernorm.weight"), tensor(&block.attention_norm.weight));
            add(
                format!("{prefix}.post_attention_layernorm.weight"),
                tensor(&block.mlp_norm.weight),
            );
            if let Some((q_norm, k_norm)) = &a.qk_norm {
                add(format!("{prefix}.self_attn.q_norm.weight"), tensor(&q_norm.weight));
                add(format!("{prefix}.self_attn.k_norm.weight"), tensor(&k_norm.weight));
            }
        }
        add("model.norm.weight".into(), tensor(&self.norm.weight));
        if let Some(head) = &self.lm_head {
            add("lm_head.weight".into(), head.weight.shallow_clone());
        }
        weights
    }
}

/// What turns hidden states into logits.
#[derive(Debug)]
pub struct Head {
    weight: Tensor, // [v, d]
}

impl Head {
    /// The head of some tokens `[a]` alone, for those who choose between them.
    pub fn of_tokens(&self, tokens: &Tensor) -> Self {
        Self { weight: self.weight.index_select(0, tokens) }
    }

    /// Logits `[.., v]` in f32 of hidden states `[.., d]`.
    pub fn logits(&self, h: &Tensor) -> Tensor {
        h.linear(&self.weight, None::<Tensor>).to_kind(Kind::Float)
    }
}
