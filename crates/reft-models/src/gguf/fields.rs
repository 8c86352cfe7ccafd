//! The metadata of GGUF files: how each key is treated.

use serde_json::{Value as Json, json};

use crate::{Field, Fields, Gguf, Result};

/// The metadata keys of a GGUF file, with `{architecture}` for its architecture's name, as llama.cpp has them.
pub const GGUF: Fields = Fields {
    file: "a GGUF file",
    groups: &[
        &[
            Field::applied(&[
                "general.architecture",
                "general.alignment",
                "{architecture}.block_count",
                "{architecture}.context_length",
                "{architecture}.embedding_length",
                "{architecture}.attention.head_count",
                "{architecture}.attention.key_length",
                "{architecture}.attention.layer_norm_rms_epsilon",
                "{architecture}.attention.sliding_window",
                "{architecture}.rope.freq_base",
            ]),
            Field::applied(&[
                "{architecture}.attention.head_count_kv",
                "{architecture}.feed_forward_length",
            ])
            .with_note("a list with a number for each layer has to hold one number only"),
            Field::applied(&[
                "{architecture}.rope.scaling.type",
                "{architecture}.rope.scaling.factor",
                "{architecture}.rope.scale_linear",
            ])
            .with_note("types none, linear and yarn; linear where a factor stands without a type"),
            Field::applied(&[
                "{architecture}.rope.scaling.yarn_attn_factor",
                "{architecture}.rope.scaling.yarn_beta_fast",
                "{architecture}.rope.scaling.yarn_beta_slow",
            ])
            .with_note("of type yarn"),
            Field::only(
                &["{architecture}.rope.scaling.yarn_ext_factor"],
                |factor| factor.as_f64() == Some(1.0),
                "1",
            ),
            Field::applied(&["{architecture}.rope.scaling.original_context_length"])
                .with_note("of Phi-3, and of type yarn"),
            Field::applied(&["{architecture}.rope.dimension_count"])
                .with_note("whole heads are turned but in Phi-3"),
            Field::applied(&["{architecture}.attention.value_length"])
                .with_note("the same as `key_length`"),
            Field::applied(&["{architecture}.attention.scale"])
                .with_note("0, or 1 over the root of the head size; in Granite any"),
            Field::applied(&["{architecture}.attention.causal"]).with_note("true"),
            Field::only(
                &[
                    "{architecture}.attention.clamp_kqv",
                    "{architecture}.attention.max_alibi_bias",
                    "{architecture}.router_logit_softcapping",
                    "{architecture}.expert_count",
                    "{architecture}.expert_used_count",
                    "{architecture}.expert_shared_count",
                    "{architecture}.leading_dense_block_count",
                    "{architecture}.nextn_predict_layers",
                ],
                |number| number.as_f64() == Some(0.0),
                "0: no such thing is computed",
            ),
            Field::only(
                &[
                    "{architecture}.attn_logit_softcapping",
                    "{architecture}.final_logit_softcapping",
                ],
                |cap| cap.as_f64() == Some(0.0),
                "0; in Gemma, whose scores (2) and logits are capped, applied",
            ),
            Field::refused(
                &[
                    "{architecture}.attention.sliding_window_pattern",
                    "{architecture}.rope.freq_base_swa",
                ],
                "only in Gemma 3 and OLMo 3 they are applied",
            ),
            Field::refused(
                &[
                    "{architecture}.rope.scaling.yarn_log_multiplier",
                    "{architecture}.attention.temperature_scale",
                ],
                "only in Ministral 3 (mistral3) they are applied",
            ),
            Field::only(
                &[
                    "{architecture}.embedding_scale",
                    "{architecture}.logit_scale",
                    "{architecture}.residual_scale",
                ],
                |scale| scale.as_f64().is_some_and(|scale| scale == 0.0 || scale == 1.0),
                "1; in Granite applied",
            ),
            Field::only(
                &["{architecture}.rope.scaling.attn_factor"],
                |factor| factor.as_f64() == Some(1.0),
                "1; in Phi-3 applied",
            ),
            Field::only(
                &["{architecture}.tensor_data_layout"],
                |layout| layout == "Meta AI original pth",
                "\"Meta AI original pth\"",
            ),
            Field::only(&["general.quantization_version"], |version| *version == 2, "2"),
            Field::neutral(
                &[
                    "{architecture}.vocab_size",
                    "{architecture}.pooling_type",
                    "{architecture}.rope.scaling.finetuned",
                ],
                "the embeddings' rows are the vocabulary; the others are for embeddings and history",
            ),
        ],
        &[
            Field::applied(&[
                "tokenizer.ggml.model",
                "tokenizer.ggml.tokens",
                "tokenizer.ggml.token_type",
                "tokenizer.ggml.bos_token_id",
                "tokenizer.ggml.eos_token_id",
                "tokenizer.ggml.eot_token_id",
                "tokenizer.ggml.eom_token_id",
                "tokenizer.ggml.unknown_token_id",
                "tokenizer.ggml.padding_token_id",
                "tokenizer.ggml.add_bos_token",
                "tokenizer.ggml.add_eos_token",
                "tokenizer.chat_template",
                "tokenizer.chat_template.*",
            ]),
            Field::applied(&["tokenizer.ggml.pre", "tokenizer.ggml.merges"])
                .with_note("of byte-level BPE (model gpt2)"),
            Field::applied(&[
                "tokenizer.ggml.scores",
                "tokenizer.ggml.add_space_prefix",
                "tokenizer.ggml.remove_extra_whitespaces",
                "tokenizer.ggml.precompiled_charsmap",
            ])
            .with_note("of SentencePiece (models llama and t5), as in llama.cpp"),
            Field::neutral(
                &[
                    "tokenizer.chat_templates",
                    "tokenizer.huggingface.json",
                    "tokenizer.ggml.cls_token_id",
                    "tokenizer.ggml.fim_mid_token_id",
                    "tokenizer.ggml.fim_pad_token_id",
                    "tokenizer.ggml.fim_pre_token_id",
                    "tokenizer.ggml.fim_rep_token_id",
                    "tokenizer.ggml.fim_sep_token_id",
                    "tokenizer.ggml.fim_suf_token_id",
                    "tokenizer.ggml.mask_token_id",
                    "tokenizer.ggml.middle_token_id",
                    "tokenizer.ggml.prefix_token_id",
                    "tokenizer.ggml.seperator_token_id",
                    "tokenizer.ggml.suffix_token_id",
                ],
                "further templates, the same tokenizer in another form, and tokens for other purposes",
            ),
        ],
        &[Field::neutral(
            &["general.*", "quantize.*", "split.*", "*"],
            "who made the file, how and in how many parts; and whatever stands under neither the architecture's name nor `tokenizer`",
        )],
    ],
};

/// Prefix of the keys of further chat templates.
pub(crate) const NAMED_TEMPLATE: &str = "tokenizer.chat_template.";

/// Longer lists are shown by their length only.
const LIST_SHOWN: usize = 8;

impl Gguf {
    /// Checks the keys about the model.
    pub(crate) fn check_model_keys(&self) -> Result<()> {
        self.check_keys(|name| !name.starts_with("tokenizer."))
    }

    /// Checks the keys about the tokenizer.
    pub(crate) fn check_tokenizer_keys(&self) -> Result<()> {
        self.check_keys(|name| name.starts_with("tokenizer."))
    }

    fn check_keys(&self, is_meant: impl Fn(&str) -> bool) -> Result<()> {
        let mut keys: Vec<(&String, &Json)> =
            self.metadata().filter(|(key, _)| is_meant(key)).collect();
        keys.sort_unstable_by_key(|(key, _)| *key);
        for (key, value) in keys {
            let shown = match value {
                Json::Array(list) if list.len() > LIST_SHOWN => {
                    json!(format!("a list of {}", list.len()))
                }
                other => other.clone(),
            };
            let named = self.name_in_table(key);
            let own = named.strip_prefix("{architecture}.").unwrap_or_default();
            if self.architecture.own.contains(&own) {
                continue;
            }
            let in_file = |refusal: String| {
                self.broken(format!("metadata {}", refusal.replacen(&named, key, 1)))
            };
            GGUF.check([(&named, &shown)]).map_err(in_file)?;
        }
        Ok(())
    }

    /// The name that the table has for a key.
    fn name_in_table(&self, key: &str) -> String {
        if GGUF.find(key).is_some() {
            return key.to_owned();
        }
        if key.starts_with(NAMED_TEMPLATE) {
            return "tokenizer.chat_template.*".to_owned();
        }
        match key.split_once('.') {
            Some(("tokenizer", _)) => key.to_owned(),
            Some((first, rest)) if first == self.architecture.name => {
                format!("{{architecture}}.{rest}")
            }
            _ => "*".to_owned(),
        }
    }
}
