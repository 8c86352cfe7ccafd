//! The model's configuration from a GGUF file's metadata, in the form of a Hugging Face directory.

use serde_json::{Map, Value as Json, json};

use crate::Result;
use crate::gguf::gguf_file::{Gguf, ROPE_FREQUENCIES, ROPE_LONG, ROPE_SHORT, Stored};

/// llama3's rope scaling, as far as Meta's models fix it; the file stores only the factors that follow from it.
const LLAMA3_LOW_FREQUENCY_FACTOR: f64 = 1.0;
const LLAMA3_HIGH_FREQUENCY_FACTOR: f64 = 4.0;
const LLAMA3_ORIGINAL_LENGTH: i64 = 8192;

impl Gguf {
    /// The contents of `config.json`.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) if metadata is missing or inconsistent, or needs a feature that the decoder lacks
    /// ([`GGUF`](crate::GGUF)).
    pub fn config(&self) -> Result<Json> {
        self.check_model_keys()?;
        let sliding_window =
            self.optional::<i64>(&self.key("attention.sliding_window"), "an integer")?;
        let sliding_window = sliding_window.filter(|window| *window != 0); // the converter's value for none
        let temperature = self.temperature_scale()?;
        let (class, model_type) = match self.architecture.name {
            "mistral3" if temperature.is_some() => ("Ministral3ForCausalLM", "ministral3"),
            "mistral3" => ("MistralForCausalLM", "mistral"),
            "qwen2" => ("Qwen2ForCausalLM", "qwen2"),
            "qwen3" => ("Qwen3ForCausalLM", "qwen3"),
            "gemma2" => ("Gemma2ForCausalLM", "gemma2"),
            "gemma3" => ("Gemma3ForCausalLM", "gemma3_text"),
            "smollm3" => ("SmolLM3ForCausalLM", "smollm3"),
            "granite" => ("GraniteForCausalLM", "granite"),
            "olmo2" if sliding_window.is_some() => ("Olmo3ForCausalLM", "olmo3"),
            "olmo2" => ("Olmo2ForCausalLM", "olmo2"),
            "phi3" => ("Phi3ForCausalLM", "phi3"),
            _ if sliding_window.is_some() => ("MistralForCausalLM", "mistral"),
            _ => ("LlamaForCausalLM", "llama"),
        };
        let hidden_size = self.size("embedding_length")?;
        let n_heads = self.per_layer("attention.head_count")?;
        let head_dim = self.optional(&self.key("attention.key_length"), "an integer")?;
        let head_dim = head_dim.unwrap_or(hidden_size / n_heads);
        let rotated: Option<i64> =
            self.optional(&self.key("rope.dimension_count"), "an integer")?;
        let rotated = rotated.filter(|rotated| *rotated != head_dim);
        if let Some(rotated) = rotated.filter(|_| model_type != "phi3") {
            return Err(self.broken(format!(
                "rope turns {rotated} of {head_dim} dimensions of a head; only whole heads can be turned"
            )));
        }
        self.check_attention(head_dim)?;
        let rope_theta = self.optional(&self.key("rope.freq_base"), "a number")?.unwrap_or(10000.0);
        let epsilon = self.required(&self.key("attention.layer_norm_rms_epsilon"), "a number")?;
        let mut config = Map::new();
        let mut set = |key: &str, value: Json| config.insert(key.to_owned(), value);
        set("architectures", json!([class]));
        set("model_type", json!(model_type));
        set("vocab_size", json!(self.vocab_size()?));
        set("hidden_size", json!(hidden_size));
        set("intermediate_size", json!(self.per_layer("feed_forward_length")?));
        set("num_hidden_layers", json!(self.size("block_count")?));
        set("num_attention_heads", json!(n_heads));
        set("num_key_value_heads", json!(self.key_value_heads()?));
        set("head_dim", json!(head_dim));
        set("hidden_act", json!("silu"));
        set("max_position_embeddings", json!(self.size("context_length")?));
        set("rms_norm_eps", json!(shortest(epsilon)));
        set("rope_theta", json!(shortest(rope_theta)));
        set("rope_scaling", self.rope_scaling(rotated.unwrap_or(head_dim), f64::from(rope_theta))?);
        if let Some(rotated) = rotated {
            set("partial_rotary_factor", json!(rotated as f64 / head_dim as f64));
        }
        set("attention_bias", json!(self.holds("model.layers.0.self_attn.q_proj.bias")));
        set("mlp_bias", json!(self.holds("model.layers.0.mlp.gate_proj.bias")));
        set("tie_word_embeddings", json!(!self.holds("lm_head.weight")));
        if let Some(window) = sliding_window {
            set("sliding_window", json!(window));
        } else if self.architecture.name == "mistral3" {
            set("sliding_window", Json::Null); // its families have one by default
        }
        set("bos_token_id", json!(self.token_id("bos")?));
        set("eos_token_id", json!(self.token_id("eos")?));
        set("pad_token_id", json!(self.token_id("padding")?));
        set("torch_dtype", json!("float32"));
        self.set_own(model_type, (hidden_size, n_heads, head_dim), &mut config)?;
        Ok(config.into())
    }

    /// Fields that only one architecture has. llama.cpp hard-codes some of them; these are not in the file.
    fn set_own(
        &self,
        model_type: &str,
        (hidden_size, n_heads, head_dim): (i64, i64, i64),
        config: &mut Map<String, Json>,
    ) -> Result<()> {
        let number = |key: &str| -> Result<Json> {
            let found: Option<f32> = self.optional(&self.key(key), "a number")?;
            Ok(json!(found.filter(|number| *number != 0.0).map(shortest)))
        };
        let mut set = |key: &str, value: Json| config.insert(key.to_owned(), value);
        match model_type {
            "gemma2" | "gemma3_text" => {
                // the largest models of both families are scaled by hidden size / heads
                let layers = self.size("block_count")?;
                let is_largest = layers == if model_type == "gemma2" { 46 } else { 62 };
                let scalar = if is_largest { hidden_size / n_heads } else { head_dim };
                set("query_pre_attn_scalar", json!(scalar));
                set("hidden_activation", json!("gelu_pytorch_tanh"));
                set("attn_logit_softcapping", number("attn_logit_softcapping")?);
                set("final_logit_softcapping", number("final_logit_softcapping")?);
            }
            "granite" => {
                for (key, own) in [
                    ("attention_multiplier", "attention.scale"),
                    ("embedding_multiplier", "embedding_scale"),
                    ("residual_multiplier", "residual_scale"),
                    ("logits_scaling", "logit_scale"),
                ] {
                    set(key, number(own)?);
                }
            }
            "olmo3" => {
                let (theta, scaling) =
                    (set("rope_theta", Json::Null), set("rope_scaling", Json::Null));
                // layers with a window use RoPE without scaling
                let mut full = scaling.filter(Json::is_object);
                let full = full.get_or_insert_with(|| json!({ "rope_type": "default" }));
                full["rope_theta"] = theta.unwrap_or_default();
                let key = self.key("rope.freq_base_swa");
                let own: Option<f32> = self.optional(&key, "a number")?;
                let own =
                    own.map_or_else(|| full["rope_theta"].clone(), |own| json!(shortest(own)));
                let sliding = json!({ "rope_type": "default", "rope_theta": own });
                set(
                    "rope_parameters",
                    json!({ "full_attention": full, "sliding_attention": sliding }),
                );
                set("layer_types", self.layer_types()?);
            }
            "phi3" => {
                let key = self.key("rope.scaling.original_context_length");
                let original: Option<i64> = self.optional(&key, "an integer")?;
                if let Some(original) = original {
                    set("original_max_position_embeddings", json!(original));
                }
            }
            _ => {}
        }
        if model_type == "gemma3_text" {
            let key = self.key("attention.sliding_window_pattern");
            let pattern: Option<i64> = self.optional(&key, "an integer")?;
            set("sliding_window_pattern", json!(pattern.unwrap_or(6)));
            let local: Option<f32> = self.optional(&self.key("rope.freq_base_swa"), "a number")?;
            set("rope_local_base_freq", json!(shortest(local.unwrap_or(10_000.0))));
        }
        Ok(())
    }

    /// `layer_types` of OLMo 3: the file lists for each layer whether it has a window, or gives the period of layers without one (default 4).
    fn layer_types(&self) -> Result<Json> {
        let key = self.key("attention.sliding_window_pattern");
        let pattern: Option<Json> = self.optional(&key, "a list or an integer")?;
        let layers = self.size("block_count")?;
        let slides: Vec<bool> = match pattern {
            Some(Json::Array(list)) => list.iter().map(|slides| slides == true).collect(),
            pattern => {
                let period = pattern.and_then(|period| period.as_i64()).unwrap_or(4).max(1);
                (1..=layers).map(|layer| layer % period != 0).collect()
            }
        };
        let name = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
        Ok(slides.iter().map(name).collect())
    }

    /// How much queries grow with their position; `None` if they do not.
    fn temperature_scale(&self) -> Result<Option<f64>> {
        let scale: Option<f32> =
            self.optional(&self.key("attention.temperature_scale"), "a number")?;
        Ok(scale.filter(|scale| *scale != 0.0).map(shortest))
    }

    /// Refuses attention that is not causal, values of another size than keys, and scores not scaled by 1 / √(head size).
    fn check_attention(&self, head_dim: i64) -> Result<()> {
        let key = self.key("attention.causal");
        if self.optional(&key, "a bool")? == Some(false) {
            return Err(self.broken(format!(
                "metadata {key} is false, expected true: only decoders are read"
            )));
        }
        let key = self.key("attention.value_length");
        if let Some(found) =
            self.optional(&key, "an integer")?.filter(|found: &i64| *found != head_dim)
        {
            return Err(self.broken(format!(
                "metadata {key} is {found}, expected {head_dim}, the size of a head's keys"
            )));
        }
        if self.architecture.own.contains(&"attention.scale") {
            return Ok(());
        }
        let (key, usual) = (self.key("attention.scale"), 1.0 / (head_dim as f64).sqrt());
        let is_other = |scale: &f64| *scale != 0.0 && (scale / usual - 1.0).abs() > 1e-5; // f32 in the file
        match self.optional(&key, "a number")?.filter(is_other) {
            Some(found) => Err(self.broken(format!(
                "metadata {key} is {found}, which is not applied here; expected 0 or {usual}, 1 over the root of the head size"
            ))),
            None => Ok(()),
        }
    }

    /// The contents of `generation_config.json`: every token that ends a reply.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) if a token id is not an id of the vocabulary.
    pub fn generation_config(&self) -> Result<Json> {
        let mut ends: Vec<i64> = Vec::new();
        for kind in ["eos", "eot", "eom"] {
            ends.extend(self.token_id(kind)?.filter(|id| !ends.contains(id)));
        }
        Ok(json!({
            "bos_token_id": self.token_id("bos")?,
            "eos_token_id": if ends.len() == 1 { json!(ends[0]) } else { json!(ends) },
            "pad_token_id": self.token_id("padding")?,
        }))
    }

    /// `tokenizer.ggml.{kind}_token_id`, or its stand-in in a SentencePiece vocabulary.
    pub(crate) fn token_id(&self, kind: &str) -> Result<Option<i64>> {
        let key = format!("tokenizer.ggml.{kind}_token_id");
        let vocab_size = self.vocab_size()?;
        match self.optional(&key, "an integer")? {
            None => self.usual_token_id(kind),
            Some(id) if !(0..vocab_size).contains(&id) => Err(self
                .broken(format!("metadata {key} is {id}, the vocabulary has {vocab_size} tokens"))),
            id => Ok(id),
        }
    }

    /// The rows of the embedding.
    fn vocab_size(&self) -> Result<i64> {
        self.shapes()
            .find(|(name, _)| *name == "model.embed_tokens.weight")
            .and_then(|(_, shape)| shape.first().copied())
            .ok_or_else(|| self.broken("it holds no tensor token_embd.weight".to_owned()))
    }

    /// `rope_scaling` of config.json, or null. A factor without a type means linear scaling, as in llama.cpp.
    fn rope_scaling(&self, head_dim: i64, theta: f64) -> Result<Json> {
        let mut factor = self.optional(&self.key("rope.scaling.factor"), "a number")?;
        if factor.is_none() {
            factor = self.optional(&self.key("rope.scale_linear"), "a number")?;
        }
        let factor = factor.filter(|factor: &f32| *factor != 0.0); // no scaling
        let key = self.key("rope.scaling.type");
        let linear = match (self.optional(&key, "a string")?, factor) {
            (None, None) | (Some("none"), _) => Json::Null,
            (None | Some("linear"), Some(factor)) => {
                json!({ "rope_type": "linear", "factor": shortest(factor) })
            }
            (Some("yarn"), Some(factor)) => self.yarn(shortest(factor))?,
            (Some(kind @ ("linear" | "yarn")), None) => {
                return Err(self.broken(format!("metadata {key} is {kind:?}, without a factor")));
            }
            (Some(other), _) => {
                return Err(self.broken(format!(
                    "rope scaling {other:?}; linear, yarn and llama3 can be read"
                )));
            }
        };
        let factors = |name: &str| self.rope_factors.get(name);
        if let (Some(short), Some(long)) = (factors(ROPE_SHORT), factors(ROPE_LONG)) {
            return self.longrope(short, long, &linear);
        }
        match factors(ROPE_FREQUENCIES) {
            None => Ok(linear),
            Some(factors) if linear.is_null() => self.llama3_scaling(factors, head_dim, theta),
            Some(_) => Err(self.broken(format!(
                "it asks for linear rope scaling and holds the factors {ROPE_FREQUENCIES}; expected one of them"
            ))),
        }
    }

    /// YaRN. The file has no `mscale`; llama.cpp uses 1.
    fn yarn(&self, factor: f64) -> Result<Json> {
        let number = |key: &str| -> Result<Option<f64>> {
            let key = self.key(&format!("rope.scaling.{key}"));
            let found: Option<f32> = self.optional(&key, "a number")?;
            Ok(found.map(shortest))
        };
        let original = self.key("rope.scaling.original_context_length");
        let original: Option<i64> = self.optional(&original, "an integer")?;
        let mut rope = json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
            "attention_factor": number("yarn_attn_factor")?,
            "beta_fast": number("yarn_beta_fast")?,
            "beta_slow": number("yarn_beta_slow")?,
        });
        if let Some(log) = number("yarn_log_multiplier")?.filter(|log| *log != 0.0) {
            rope["mscale"] = json!(1.0);
            rope["mscale_all_dim"] = json!(log);
        }
        if let Some(beta) = self.temperature_scale()? {
            rope["llama_4_scaling_beta"] = json!(beta);
        }
        Ok(rope)
    }

    /// The numbers of a vector.
    fn vector(&self, stored: &Stored) -> Result<Vec<f32>> {
        Ok(Vec::try_from(self.dequantise(stored, 0, 1)?.f_flatten(0, -1)?)?)
    }

    /// LongRoPE: its factors are tensors of the file.
    fn longrope(&self, short: &Stored, long: &Stored, linear: &Json) -> Result<Json> {
        if self.architecture.name != "phi3" || !linear.is_null() {
            return Err(self.broken(format!(
                "it holds {ROPE_SHORT} and {ROPE_LONG}, and is not a Phi-3 without other rope scaling"
            )));
        }
        let numbers = |stored: &Stored| -> Result<Vec<f64>> {
            Ok(self.vector(stored)?.into_iter().map(shortest).collect())
        };
        let key = self.key("rope.scaling.attn_factor");
        let attention: Option<f32> = self.optional(&key, "a number")?;
        Ok(json!({
            "rope_type": "longrope",
            "short_factor": numbers(short)?,
            "long_factor": numbers(long)?,
            "attention_factor": attention.map(shortest),
        }))
    }

    /// Recognises llama3's scaling by the factors that follow from it.
    ///
    /// With wavelength λ = 2π θ^(2i/d), a pair's frequency is divided by 1 where λ is below length / high, by the factor
    /// where it is above length / low, and by an interpolation of the two between.
    fn llama3_scaling(&self, factors: &Stored, head_dim: i64, theta: f64) -> Result<Json> {
        let found = self.vector(factors)?;
        let factor = f64::from(found.iter().copied().fold(1.0, f32::max));
        let (low, high) = (LLAMA3_LOW_FREQUENCY_FACTOR, LLAMA3_HIGH_FREQUENCY_FACTOR);
        let expected = (0..head_dim / 2).map(|i| {
            let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
            let share = LLAMA3_ORIGINAL_LENGTH as f64 / wavelength;
            let smooth = ((share - low) / (high - low)).clamp(0.0, 1.0);
            1.0 / ((1.0 - smooth) / factor + smooth)
        });
        // The file holds f32: 1e-4 is above their rounding and far below the step between two pairs.
        let same = found.len() as i64 == head_dim / 2
            && found
                .iter()
                .zip(expected)
                .all(|(&found, expected)| (f64::from(found) / expected - 1.0).abs() < 1e-4);
        if !same {
            return Err(self.broken(format!(
                "the factors of {ROPE_FREQUENCIES} are not those of llama3's rope scaling"
            )));
        }
        Ok(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": LLAMA3_ORIGINAL_LENGTH,
        }))
    }
}

/// The f64 with the shortest decimal that rounds to this f32: 1e-5, not 9.999999747378752e-6.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}
