use std::ops::Deref;
use std::path::Path;

use serde_json::Value;

use crate::transformer::config_file::ConfigFile;
use crate::{
    Component, Error, Gguf, ModelDescription, ModelTensor, Result, Site, TensorRole, json_error,
    read_json,
};

/// The options of a Llama-family decoder: what a `config.json` says, with every default filled in.
///
/// It is used like the [`ModelDescription`] in it, whose tensors are listed by [`Self::describe`].
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Family (llama, mistral, qwen2 or qwen3), sizes and windows.
    pub model: ModelDescription,
    /// ε of RMSNorm.
    pub rms_norm_eps: f64,
    /// Base θ of the rotary position embedding.
    pub rope_theta: f64,
    /// How rotary frequencies are stretched for longer contexts.
    pub rope_scaling: RopeScaling,
    /// Whether the head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether the attention output has a bias.
    pub attention_output_bias: bool,
    /// Whether the MLP's projections have a bias.
    pub mlp_bias: bool,
    /// Whether each head's queries and keys are normalised (Qwen3).
    pub qk_norm: bool,
}

impl Deref for DecoderConfig {
    type Target = ModelDescription;

    fn deref(&self) -> &ModelDescription {
        &self.model
    }
}

/// Stretching of the rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// As they are.
    None,
    /// Positions divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by a factor, short ones kept, a smooth passage between.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths past `original / low_freq_factor` are stretched in full.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context that the frequencies were made for.
        original_max_position_embeddings: f64,
    },
}

impl DecoderConfig {
    /// Reads `config.json` of a model directory, or the header of a GGUF file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`] or [`Error::Config`].
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Self::from_json(Gguf::open(path)?.config()?, path);
        }
        let file = path.join("config.json");
        Self::from_json(read_json(&file)?, &file)
    }

    /// The configuration in a `config.json` object that came from `path`.
    ///
    /// # Errors
    /// [`Error::Json`] if a field is missing or of another type, [`Error::Config`] if a value cannot be.
    pub fn from_json(json: Value, path: &Path) -> Result<Self> {
        let file: ConfigFile = serde_json::from_value(json).map_err(json_error(path))?;
        file.resolve().map_err(Error::Config)
    }

    /// What methods, trainer and planner know of the decoder.
    pub fn describe(&self) -> ModelDescription {
        ModelDescription { tensors: self.tensors(), ..self.model.clone() }
    }

    /// Every tensor of the decoder: what is read, listed, and named by methods.
    fn tensors(&self) -> Vec<ModelTensor> {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let (q, kv) =
            (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: Vec<i64>, role| {
            tensors.push(ModelTensor { name, shape, role });
        };
        add("model.embed_tokens.weight".into(), vec![self.vocab_size, d], TensorRole::Embeddings);
        for layer in 0..self.num_hidden_layers {
            let projections = [
                (Component::Query, "self_attn", q, d, self.qkv_bias),
                (Component::Key, "self_attn", kv, d, self.qkv_bias),
                (Component::Value, "self_attn", kv, d, self.qkv_bias),
                (Component::Output, "self_attn", d, q, self.attention_output_bias),
                (Component::Gate, "mlp", f, d, self.mlp_bias),
                (Component::Up, "mlp", f, d, self.mlp_bias),
                (Component::Down, "mlp", d, f, self.mlp_bias),
            ];
            let prefix = format!("model.layers.{layer}");
            for (component, part, rows, columns, bias) in projections {
                let role = TensorRole::Projection(Site { layer, component });
                let name = format!("{prefix}.{part}.{component}.weight");
                add(name, vec![rows, columns], role);
                if bias {
                    let name = format!("{prefix}.{part}.{component}.bias");
                    add(name, vec![rows], TensorRole::Vector);
                }
            }
            for name in ["input_layernorm", "post_attention_layernorm"] {
                add(format!("{prefix}.{name}.weight"), vec![d], TensorRole::Vector);
            }
            for name in ["q_norm", "k_norm"].into_iter().filter(|_| self.qk_norm) {
                let name = format!("{prefix}.self_attn.{name}.weight");
                add(name, vec![self.head_dim], TensorRole::Vector);
            }
        }
        add("model.norm.weight".into(), vec![d], TensorRole::Vector);
        if !self.tie_word_embeddings {
            add("lm_head.weight".into(), vec![self.vocab_size, d], TensorRole::Head);
        }
        tensors
    }
}
