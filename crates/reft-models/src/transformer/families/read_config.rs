//! From a `config.json` to the options of its family.

use std::path::Path;

use serde_json::Value;

use super::{FAMILIES, Family, NOT_COMPUTED};
use crate::transformer::config::config_file::{CONFIG, ConfigFile, Resolved, activation};
use crate::transformer::config::module_names::DECODER;
use crate::transformer::config::text_part::text_part;
use crate::{
    AttentionOptions, DecoderConfig, EmbeddingOptions, Error, Gguf, MlpKind, MlpOptions,
    ModelDescription, Multipliers, NormKind, NormOptions, NormPlaces, Result, RopeScaling,
    TaskHeadForm, json_error, read_json,
};

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

    /// The configuration in a `config.json` object that came from `path`. For a multimodal model it is the decoder's.
    ///
    /// # Errors
    /// [`Error::Json`] if a field is missing or of another type, [`Error::Config`] for an invalid value.
    pub fn from_json(json: Value, path: &Path) -> Result<Self> {
        let json = text_part(json).map_err(Error::Config)?;
        let (family, json) = known_family(json).map_err(Error::Config)?;
        let file: ConfigFile = serde_json::from_value(json).map_err(json_error(path))?;
        file.resolve(family).map_err(Error::Config)
    }
}

/// The family of a configuration, and the configuration with transformers' defaults. All its fields have been checked.
fn known_family(mut json: Value) -> Resolved<(&'static Family, Value)> {
    let Some(fields) = json.as_object_mut() else { return Ok((FAMILIES[0], json)) };
    let Some(model_type) = fields.get("model_type").and_then(Value::as_str) else {
        return Ok((FAMILIES[0], json)); // reading it reports the fault
    };
    let family = FAMILIES.iter().copied().find(|family| family.model_type == model_type);
    let Some(family) = family else {
        let missing = NOT_COMPUTED.iter().find(|(types, _)| types.contains(&model_type));
        let missing = missing.map_or("", |(_, missing)| missing);
        let known: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
        let known = known.join(", ");
        return Err(format!("model_type is {model_type:?}{missing}; expected one of {known}"));
    };
    let (own, of_all): (Vec<_>, Vec<_>) =
        fields.iter().partition(|(name, _)| family.fields.find(name).is_some());
    family.fields.check(own)?;
    CONFIG.check(of_all)?;
    let Value::Object(defaults) = (family.defaults)() else { return Ok((family, json)) };
    for (name, value) in defaults {
        fields.entry(name).or_insert(value);
    }
    Ok((family, json))
}

impl ConfigFile {
    /// The configuration; else the value found and the value expected.
    fn resolve(self, family: &Family) -> Resolved<DecoderConfig> {
        let heads = self.num_attention_heads;
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        // Far above any model, and low enough that their products do not overflow and lists of layers fit in memory.
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
        let eps = self.rms_norm_eps.unwrap_or(1e-6);
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(format!("rms_norm_eps is {eps}, expected a number that is not negative"));
        }
        let attention_bias = self.attention_bias.filter(|_| family.reads_attention_bias);
        let ropes = (family.ropes)(&self, head_dim)?;
        let mut config = DecoderConfig {
            names: &DECODER,
            embeddings: EmbeddingOptions::default(),
            norm: NormOptions {
                kind: NormKind::Rms,
                places: NormPlaces::Pre,
                eps,
                bias: false,
                skips_first: false,
            },
            attention: AttentionOptions {
                scale: None,
                soft_cap: None,
                qk_norm: None,
                is_fused: false,
                qkv_bias: attention_bias.unwrap_or(false),
                output_bias: attention_bias.unwrap_or(false),
                query_scaling: None,
                rope_of_layer: vec![Some(0); self.num_hidden_layers],
                ropes,
            },
            mlp: MlpOptions {
                activation: activation("hidden_act", self.hidden_act.as_deref())?,
                kind: MlpKind::Gated,
                bias: self.mlp_bias.filter(|_| family.reads_mlp_bias).unwrap_or(false),
            },
            multipliers: Multipliers::default(),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            model: ModelDescription {
                vocab_size: self.vocab_size,
                hidden_size: self.hidden_size,
                intermediate_size: self.intermediate_size,
                num_hidden_layers: self.num_hidden_layers,
                num_attention_heads: heads,
                num_key_value_heads: kv_heads,
                head_dim,
                max_position_embeddings: self.max_position_embeddings,
                is_causal: true,
                windows: self.windows(family.window)?,
                keys_change_at: None,
                depends_on_length: false,
                keeps_scores: false,
                prefix: None,
                task_head: TaskHeadForm::Score,
                tensors: Vec::new(),
                model_type: self.model_type.clone(),
            },
        };
        (family.options)(&self, &mut config)?;
        config.model.keeps_scores = config.attention.soft_cap.is_some();
        for rope in &config.attention.ropes {
            config.model.depends_on_length |= rope.scaling.depends_on_length();
            match rope.scaling {
                RopeScaling::LongRope { original_max_position_embeddings: original, .. } => {
                    config.model.keys_change_at = Some(original as usize);
                }
                // the context grows at most by this factor
                RopeScaling::Dynamic { factor, original_max_position_embeddings: original } => {
                    config.model.max_position_embeddings = (original * factor) as i64;
                }
                _ => {}
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fate;
    use serde_json::json;

    fn file() -> Value {
        json!({
            "model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2,
        })
    }

    #[test]
    fn fields_that_are_said_to_be_applied_are_read() -> Resolved<()> {
        for family in FAMILIES {
            let (_, complete) = known_family(with(&json!({ "model_type": family.model_type })))?;
            let read = serde_json::from_value::<ConfigFile>(complete.clone());
            assert!(read.is_ok(), "{}: {read:?}", family.model_type);
            let fields = CONFIG.groups.iter().chain(family.fields.groups).copied().flatten();
            for name in fields.filter(|f| matches!(f.fate, Fate::Applied)).flat_map(|f| f.names) {
                let mut odd = complete.clone();
                odd[*name] = json!([{ "odd": [] }]);
                let read = serde_json::from_value::<ConfigFile>(odd);
                assert!(read.is_err(), "{}: {name} is not read", family.model_type);
            }
        }
        Ok(())
    }

    #[test]
    fn fields_that_nobody_knows_are_refused_by_name() {
        for (name, value) in [
            ("attention_of_tomorrow", json!(true)),
            ("per_layer_config", json!({"0": {"num_key_value_heads": 1}})),
            ("logit_scale", json!(0.5)),
            ("hidden_act", json!("relu")),
            ("query_pre_attn_scalar", json!(64)),
            ("attention_dropout", json!(0.1)),
            ("partial_rotary_factor", json!(0.5)),
            ("quantization_config", json!({"quant_method": "awq"})),
        ] {
            let refused = resolved(&json!({ name: value }));
            assert!(refused.is_err_and(|reason| reason.starts_with(name)), "{name}");
        }
    }

    #[test]
    fn families_that_are_not_computed_are_refused_with_what_is_missing() {
        for (model_type, missing) in [
            ("mixtral", "a mixture of experts"),
            ("qwen3_moe", "a mixture of experts"),
            ("llava", "sees images"),
            ("lfm2", "convolutions"),
            ("tomorrow", "expected one of llama, mistral, qwen2"),
        ] {
            let refused = resolved(&json!({ "model_type": model_type })).err().unwrap_or_default();
            assert!(refused.starts_with(&format!("model_type is {model_type:?}")), "{refused}");
            assert!(refused.contains(missing), "{refused}");
        }
    }

    #[test]
    fn numbers_that_a_family_cannot_have_are_refused_by_name() {
        for (model_type, field, value) in [
            ("gemma2", "query_pre_attn_scalar", json!(0)),
            ("gemma2", "attn_logit_softcapping", json!(-1.0)),
            ("gemma2", "hidden_activation", json!("relu")),
            ("gemma2", "use_bidirectional_attention", json!(true)),
            ("gemma3_text", "sliding_window", Value::Null),
            ("gemma3_text", "rope_parameters", json!({"rope_theta": 5.0})),
            ("smollm3", "no_rope_layers", json!([1])),
            ("granite", "residual_multiplier", json!(-0.5)),
            ("phi3", "resid_pdrop", json!(0.1)),
        ] {
            let edit = json!({ "model_type": model_type, field: value, "num_key_value_heads": 2 });
            let refused = resolved(&edit).err().unwrap_or_default();
            assert!(refused.starts_with(field), "{model_type} {field}: {refused}");
        }
        let beta = json!({"rope_type": "default", "original_max_position_embeddings": 8});
        let edit = json!({ "model_type": "ministral3", "num_key_value_heads": 2, "rope_parameters": beta });
        let refused = resolved(&edit).err().unwrap_or_default();
        assert!(refused.starts_with("rope: llama_4_scaling_beta is missing"), "{refused}");
    }

    /// The file with other fields.
    fn with(edit: &Value) -> Value {
        let mut own = file();
        for (name, value) in edit.as_object().into_iter().flatten() {
            own[name] = value.clone();
        }
        own
    }

    fn resolved(edit: &Value) -> Resolved<DecoderConfig> {
        let (family, own) = known_family(with(edit))?;
        serde_json::from_value::<ConfigFile>(own)
            .map_err(|error| error.to_string())?
            .resolve(family)
    }

    #[test]
    fn rope_is_applied_as_it_is_said_or_refused() {
        for (rope, complaint) in [
            (
                json!({"factor": 2.0}),
                "rope: factor is 2.0, which rope of type default does not have",
            ),
            (json!({"rope_type": "linear"}), "rope: factor is missing"),
            (json!({"rope_type": "linear", "factor": 0}), "rope: factor is 0, expected a positive"),
            (
                json!({"rope_type": "linear", "factor": "2"}),
                "rope: factor is \"2\", expected a pos",
            ),
            (json!({"rope_theta": -1.0}), "rope: rope_theta is -1.0, expected a positive number"),
            (json!({"partial_rotary_factor": 0.5}), "rope: partial_rotary_factor is 0.5"),
            (json!({"rope_type": "axial"}), "rope scaling of type \"axial\""),
            (json!({"rope_type": "yarn"}), "rope: factor is missing"),
            (
                json!({"rope_type": "yarn", "factor": 4.0, "truncate": 1}),
                "rope: truncate is 1, expected true or false",
            ),
            (
                json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0, 2.0, 2.0, 2.0]}),
                "rope: short_factor holds 1 numbers, expected 4",
            ),
            (
                json!({"rope_type": "longrope", "short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": "long"}),
                "rope: long_factor is \"long\", expected 4 positive numbers",
            ),
            (
                json!({"rope_type": "linear", "factor": 2.0, "beta_fast": 32}),
                "rope: beta_fast is 32, which rope of type linear does not have",
            ),
        ] {
            for place in ["rope_scaling", "rope_parameters"] {
                let refused = resolved(&json!({ place: rope })).err().unwrap_or_default();
                assert!(refused.starts_with(complaint), "{place} {rope}: {refused}");
            }
        }
        for (field, value) in [("rope_theta", 0.0), ("rope_theta", -5.0), ("rms_norm_eps", -1e-6)] {
            let refused = resolved(&json!({ field: value })).err().unwrap_or_default();
            assert!(refused.starts_with(&format!("{field} is")), "{field} {value}: {refused}");
        }
    }

    #[test]
    fn windows_are_applied_as_transformers_does_or_refused() {
        let windows = |edit: Value| resolved(&edit).map(|config| config.model.windows);
        let qwen = |types: Value| {
            windows(json!({
                "model_type": "qwen2", "num_key_value_heads": 2, "use_sliding_window": true,
                "sliding_window": 7, "max_window_layers": 1, "layer_types": types,
            }))
        };
        assert_eq!(windows(json!({"sliding_window": 4})), Ok(vec![None, None]), "llama has none");
        let mistral = json!({"model_type": "mistral", "num_key_value_heads": 2});
        assert_eq!(windows(mistral), Ok(vec![Some(4096); 2]));
        assert_eq!(qwen(Value::Null), Ok(vec![None, Some(7)]));
        assert_eq!(qwen(json!(["sliding_attention", "full_attention"])), Ok(vec![Some(7), None]));
        for (types, complaint) in [
            (json!(["full_attention"]), "layer_types names 1 layers, expected 2"),
            (
                json!(["full_attention", "chunked_attention"]),
                "layer_types names \"chunked_attention\"",
            ),
        ] {
            assert!(
                qwen(types).is_err_and(|refused| refused.starts_with(complaint)),
                "{complaint}"
            );
        }
        for edit in [
            json!({"layer_types": ["sliding_attention", "full_attention"]}),
            json!({
                "model_type": "qwen3", "num_key_value_heads": 2, "sliding_window": null,
                "use_sliding_window": true, "layer_types": ["sliding_attention", "full_attention"],
            }),
        ] {
            let refused = windows(edit.clone()).err().unwrap_or_default();
            assert!(refused.starts_with("layer_types says sliding_attention"), "{edit}: {refused}");
        }
    }
}
