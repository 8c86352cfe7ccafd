//! A GGUF file's metadata about a model, from its configuration.

use candle_core::quantized::gguf_file::Value;
use tch::Tensor;

use crate::gguf::architecture::Architecture;
use crate::gguf::gguf_file::{ROPE_FREQUENCIES, ROPE_LONG, ROPE_SHORT};
use crate::gguf::writing::file::{Keys, refuse};
use crate::{DecoderConfig, Result, RopeOptions, RopeScaling};

/// Default period of the layers without a window in Gemma 3.
const PERIOD_OF_GEMMA3: usize = 6;

/// The keys and tensors that represent a configuration.
#[derive(Debug)]
pub(crate) struct ModelKeys {
    pub(crate) keys: Keys,
    /// Factors of RoPE, which llama.cpp keeps as tensors.
    pub(crate) factors: Vec<(&'static str, Tensor)>,
    /// The configuration that reading the file must give: without the windows that llama.cpp does not compute, and with a context so short that
    /// they change nothing.
    pub(crate) meant: DecoderConfig,
}

impl ModelKeys {
    /// The keys of a model, in the names of its architecture.
    ///
    /// # Errors
    /// [`crate::Error::NoGgufForm`] with the option that has none.
    pub(crate) fn of(config: &DecoderConfig, architecture: &Architecture) -> Result<Self> {
        let (keys, factors, meant) = (Keys::default(), Vec::new(), config.clone());
        let mut made = Self { keys, factors, meant };
        let name = architecture.name;
        let set = |made: &mut Self, key: &str, value: Value| {
            made.keys.push((format!("{name}.{key}"), value));
        };
        made.windows(config, name);
        let sizes = [
            ("block_count", config.num_hidden_layers as i64),
            ("context_length", made.meant.max_position_embeddings),
            ("embedding_length", config.hidden_size),
            ("feed_forward_length", config.intermediate_size),
            ("attention.head_count", config.num_attention_heads),
            ("attention.head_count_kv", config.num_key_value_heads),
            ("attention.key_length", config.head_dim),
            ("attention.value_length", config.head_dim),
            ("vocab_size", config.vocab_size),
        ];
        for (key, size) in sizes {
            set(&mut made, key, Value::U32(size as u32));
        }
        set(&mut made, "attention.layer_norm_rms_epsilon", number(config.norm.eps));
        made.ropes(config, architecture)?;
        let (attention, multipliers) = (&config.attention, &config.multipliers);
        let has_all_biases = matches!(name, "llama" | "granite");
        if !has_all_biases && (attention.output_bias || config.mlp.bias) {
            let family = &config.model_type;
            return Err(refuse(&format!(
                "llama.cpp has no biases of attention's output and of the MLP in models of the type {family}"
            )));
        }
        match name {
            "gemma2" if !config.tie_word_embeddings => {
                return Err(refuse("llama.cpp takes the embeddings of Gemma 2 for its head"));
            }
            "gemma2" | "gemma3" => {
                let caps = [
                    ("attn_logit_softcapping", attention.soft_cap),
                    ("final_logit_softcapping", multipliers.logit_soft_cap),
                ];
                for (key, cap) in caps {
                    if let Some(cap) = cap {
                        set(&mut made, key, number(cap));
                    }
                }
            }
            "granite" => {
                let scale = attention.scale.unwrap_or(1.0 / (config.head_dim as f64).sqrt());
                for (key, factor) in [
                    ("attention.scale", scale),
                    ("embedding_scale", multipliers.input),
                    ("residual_scale", multipliers.residual),
                    ("logit_scale", multipliers.logit_divisor),
                ] {
                    set(&mut made, key, number(factor));
                }
            }
            _ => {}
        }
        let wide = config.num_attention_heads * config.head_dim;
        if matches!(name, "olmo2" | "phi3") && wide != config.hidden_size {
            return Err(refuse(&format!(
                "llama.cpp takes the hidden size ({}) for that of all query heads ({wide}) in models of the type {}",
                config.hidden_size, config.model_type
            )));
        }
        Ok(made)
    }

    /// Windows, if llama.cpp has them for the architecture; otherwise the context is cut before a window would hide tokens.
    fn windows(&mut self, config: &DecoderConfig, name: &'static str) {
        let windows: Vec<bool> = config.windows.iter().map(Option::is_some).collect();
        let smallest = config.windows.iter().flatten().min().copied();
        let mut set = |key: &str, value: Value| self.keys.push((format!("{name}.{key}"), value));
        let has_windows = matches!(name, "gemma2" | "gemma3" | "olmo2");
        if name == "phi3" {
            set("attention.sliding_window", Value::U32(0)); // its converter's value for none
        }
        let Some(window) = smallest else { return };
        if !has_windows {
            self.meant.model.windows = vec![None; windows.len()];
            self.meant.model.max_position_embeddings = window.min(config.max_position_embeddings);
            return;
        }
        set("attention.sliding_window", Value::U32(window as u32));
        match name {
            "olmo2" => {
                let pattern = windows.into_iter().map(Value::Bool).collect();
                set("attention.sliding_window_pattern", Value::Array(pattern));
            }
            "gemma3" => {
                let period = windows.iter().position(|slides| !slides).map(|first| first + 1);
                let period = period.unwrap_or(windows.len() + 1);
                if period != PERIOD_OF_GEMMA3 {
                    set("attention.sliding_window_pattern", Value::U32(period as u32));
                }
            }
            _ => {}
        }
    }

    /// The rotary embedding of the layers without a window, and θ of the others.
    fn ropes(&mut self, config: &DecoderConfig, architecture: &Architecture) -> Result<()> {
        let rope_where = |slides: bool| -> Option<&RopeOptions> {
            let mut layers = config.windows.iter().zip(&config.attention.rope_of_layer);
            let is_one = |(window, rope): &(&Option<i64>, &Option<usize>)| {
                window.is_some() == slides && rope.is_some()
            };
            layers.find(is_one).and_then(|(_, rope)| config.attention.ropes.get((*rope)?))
        };
        let Some(rope) = rope_where(false).or_else(|| rope_where(true)) else {
            return Err(refuse("the model turns no layer by RoPE"));
        };
        let name = architecture.name;
        let mut set = |key: &str, value: Value| self.keys.push((format!("{name}.{key}"), value));
        set("rope.dimension_count", Value::U32(rope.rotated as u32));
        set("rope.freq_base", number(rope.theta));
        if let Some(own) = rope_where(true).filter(|_| matches!(name, "gemma3" | "olmo2")) {
            set("rope.freq_base_swa", number(own.theta));
        }
        match &rope.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => {
                set("rope.scaling.type", Value::String("linear".to_owned()));
                set("rope.scaling.factor", number(*factor));
            }
            RopeScaling::Yarn {
                factor,
                attention_factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings: original,
                ..
            } => {
                let usual = 0.1 * factor.ln() + 1.0; // llama.cpp's default
                if (attention_factor - usual).abs() > 1e-6 {
                    return Err(refuse(&format!(
                        "YaRN's attention factor is {attention_factor}, and llama.cpp takes {usual}"
                    )));
                }
                set("rope.scaling.type", Value::String("yarn".to_owned()));
                set("rope.scaling.factor", number(*factor));
                set("rope.scaling.original_context_length", Value::U32(*original as u32));
                set("rope.scaling.yarn_beta_fast", number(*beta_fast));
                set("rope.scaling.yarn_beta_slow", number(*beta_slow));
            }
            RopeScaling::Llama3 { .. } if architecture.interleaves => {
                let factors = llama3_factors(rope, config.head_dim);
                self.factors.push((ROPE_FREQUENCIES, Tensor::from_slice(&factors)));
            }
            RopeScaling::LongRope {
                short_factor,
                long_factor,
                attention_factor,
                original_max_position_embeddings: original,
            } if name == "phi3" => {
                set("rope.scaling.attn_factor", number(*attention_factor));
                set("rope.scaling.original_context_length", Value::U32(*original as u32));
                for (name, factors) in [(ROPE_SHORT, short_factor), (ROPE_LONG, long_factor)] {
                    let factors: Vec<f32> = factors.iter().map(|factor| *factor as f32).collect();
                    self.factors.push((name, Tensor::from_slice(&factors)));
                }
            }
            other => {
                let scaling = other.name().unwrap_or_default();
                let family = &config.model_type;
                return Err(refuse(&format!(
                    "llama.cpp has no RoPE of the type {scaling} for {family}"
                )));
            }
        }
        Ok(())
    }
}

fn number(x: f64) -> Value {
    Value::F32(x as f32)
}

/// The divisors of the frequencies in llama3's scaling, one for each pair of coordinates.
fn llama3_factors(rope: &RopeOptions, head_dim: i64) -> Vec<f32> {
    let RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: original,
    } = rope.scaling
    else {
        return Vec::new();
    };
    let of_pair = |i: i64| {
        let wavelength = std::f64::consts::TAU * rope.theta.powf(2.0 * i as f64 / head_dim as f64);
        let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    (0..head_dim / 2).map(of_pair).collect()
}
