use std::ops::Deref;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::{
    Component, Error, Gguf, ModelDescription, ModelTensor, Result, Site, TensorRole, read_json,
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

/// `config.json` as Hugging Face writes it; fields that do not concern the decoder are ignored.
#[derive(Debug, Deserialize)]
struct File {
    model_type: String,
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeFile>,
    rope_parameters: Option<RopeFile>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    sliding_window: Option<i64>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    max_position_embeddings: Option<i64>,
    hidden_act: Option<String>,
    quantization_config: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct RopeFile {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    older_rope_type: Option<String>, // files may hold both
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
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
        let file: File = serde_json::from_value(json)
            .map_err(|source| Error::Json { path: path.to_owned(), source })?;
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

impl File {
    fn resolve(self) -> std::result::Result<DecoderConfig, String> {
        const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];
        if !FAMILIES.contains(&self.model_type.as_str()) {
            let found = &self.model_type;
            return Err(format!("model_type is {found:?}, expected one of {FAMILIES:?}"));
        }
        if let Some(act) = self.hidden_act.as_deref().filter(|act| *act != "silu") {
            return Err(format!("hidden_act is {act:?}, expected \"silu\""));
        }
        if self.quantization_config.is_some() {
            let advice = "use the model's safetensors in f32, bf16 or f16, or a GGUF file";
            return Err(format!("quantization_config is set; {advice}"));
        }
        let heads = self.num_attention_heads;
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        // Far above any model, and low enough that products of them are numbers and lists of layers fit in memory.
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_hidden_layers", self.num_hidden_layers as i64, 1 << 12),
            ("num_attention_heads", heads, 1 << 12),
            ("num_key_value_heads", kv_heads, 1 << 12),
        ];
        for (name, size, limit) in sizes {
            if !(1..=limit).contains(&size) {
                return Err(format!("{name} is {size}, expected a size from 1 to {limit}"));
            }
        }
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / heads);
        if head_dim < 2 || head_dim % 2 != 0 || head_dim > 1 << 12 {
            return Err(format!("head_dim is {head_dim}, expected an even size from 2 to 4096"));
        }
        if heads % kv_heads != 0 {
            let expected = "expected a divisor of num_attention_heads";
            return Err(format!("num_key_value_heads is {kv_heads}, {expected} {heads}"));
        }
        let is_qwen = self.model_type.starts_with("qwen");
        let attention_bias = self.attention_bias.unwrap_or(self.model_type == "qwen2");
        let rope_theta = self.rope_theta.or_else(|| self.rope_parameters.as_ref()?.rope_theta);
        Ok(DecoderConfig {
            rope_theta: rope_theta.unwrap_or(10_000.0),
            rope_scaling: self.rope_scaling()?,
            rms_norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            qkv_bias: attention_bias,
            attention_output_bias: attention_bias && self.model_type != "qwen2",
            mlp_bias: self.mlp_bias.unwrap_or(false),
            qk_norm: self.model_type == "qwen3",
            model: ModelDescription {
                vocab_size: self.vocab_size,
                hidden_size: self.hidden_size,
                intermediate_size: self.intermediate_size,
                num_hidden_layers: self.num_hidden_layers,
                num_attention_heads: heads,
                num_key_value_heads: kv_heads,
                head_dim,
                max_position_embeddings: self.max_position_embeddings.unwrap_or(2048),
                is_causal: true,
                windows: self.windows(is_qwen)?,
                tensors: Vec::new(),
                model_type: self.model_type,
            },
        })
    }

    /// How far each layer sees. Qwen switches windows on with a flag, and only from a layer on; newer files list the layers.
    fn windows(&self, is_qwen: bool) -> std::result::Result<Vec<Option<i64>>, String> {
        let layers = self.num_hidden_layers;
        let enabled = !is_qwen || self.use_sliding_window.unwrap_or(false);
        let Some(window) = self.sliding_window.filter(|_| enabled) else {
            return Ok(vec![None; layers]);
        };
        if window < 1 {
            return Err(format!("sliding_window is {window}, expected a positive size or null"));
        }
        if let Some(types) = &self.layer_types {
            if types.len() != layers {
                let found = types.len();
                return Err(format!("layer_types names {found} layers, expected {layers}"));
            }
            let own = |name: &String| (name == "sliding_attention").then_some(window);
            return Ok(types.iter().map(own).collect());
        }
        let first = if is_qwen { self.max_window_layers.unwrap_or(0) } else { 0 };
        Ok((0..layers).map(|layer| (layer >= first).then_some(window)).collect())
    }

    fn rope_scaling(&self) -> std::result::Result<RopeScaling, String> {
        let Some(rope) = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref()) else {
            return Ok(RopeScaling::None);
        };
        let number = |name: &str, value: Option<f64>| match value {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            Some(x) => Err(format!("rope scaling: {name} is {x}, expected a positive number")),
            None => Err(format!("rope scaling: {name} is missing")),
        };
        match rope.rope_type.as_deref().or(rope.older_rope_type.as_deref()).unwrap_or("default") {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: number("factor", rope.factor)? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: number("factor", rope.factor)?,
                low_freq_factor: number("low_freq_factor", rope.low_freq_factor)?,
                high_freq_factor: number("high_freq_factor", rope.high_freq_factor)?,
                original_max_position_embeddings: number(
                    "original_max_position_embeddings",
                    rope.original_max_position_embeddings,
                )?,
            }),
            other => {
                Err(format!("rope scaling of type {other:?}, expected default, linear or llama3"))
            }
        }
    }
}
