//! The small JSON files beside a tokenizer: special tokens, their ids, the chat template.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::text::tokenizer_class::TokenizerClass;
use crate::{Error, Field, Fields, Gguf, Result, json_error, read_json};

/// The fields of `tokenizer_config.json` and `special_tokens_map.json`, as transformers 5.24 has them. Any other field with a text
/// whose name ends in `_token` names a special token, too.
pub const TOKENIZER_CONFIG: Fields = Fields {
    file: "`tokenizer_config.json` of a model",
    groups: &[&[
        Field::applied(&NAMED).with_note("added to the vocabulary where it lacks them"),
        Field::applied(&[
            "added_tokens_decoder",
            "additional_special_tokens",
            "extra_special_tokens",
            "model_specific_special_tokens",
        ])
        .with_note("added to the vocabulary; ids are given in their order, as transformers gives them"),
        Field::applied(&["chat_template"]),
        Field::applied(&["tokenizer_class", "add_prefix_space", "legacy"]).with_note(
            "the classes of Llama, Qwen2, GPT-2 and Gemma split text in their own way, whatever `tokenizer.json` says",
        ),
        Field::applied(&["split_special_tokens"]),
        Field::applied(&[
            "clean_up_tokenization_spaces",
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
        ]),
        Field::neutral(
            &["add_bos_token", "add_eos_token"],
            "beside a `tokenizer.json`, whose post-processor says what surrounds a text",
        ),
        Field::neutral(
            &[
                "model_max_length",
                "max_len",
                "max_length",
                "padding_side",
                "truncation_side",
                "truncation_strategy",
                "stride",
                "pad_to_multiple_of",
                "pad_token_type_id",
                "padding",
                "truncation",
                "model_input_names",
            ],
            "length and padding are decided where rows are read",
        ),
        Field::neutral(
            &[
                "auto_map",
                "backend",
                "chat_control_tokens",
                "device_map",
                "files_loaded",
                "from_slow",
                "gguf_file",
                "init_inputs",
                "is_local",
                "local_files_only",
                "merges_file",
                "name_or_path",
                "processor_class",
                "response_schema",
                "response_template",
                "slow_tokenizer_class",
                "special_tokens_map_file",
                "tokenizer_file",
                "tokenizer_type",
                "transformers_version",
                "use_fast",
                "verbose",
                "vocab_file",
                "vocab_size",
            ],
            "where the files are, and who reads them",
        ),
        Field::neutral(
            &[
                "do_basic_tokenize",
                "do_lower_case",
                "errors",
                "keep_accents",
                "never_split",
                "remove_space",
                "sp_model_kwargs",
                "spaces_between_special_tokens",
                "strip_accents",
                "tokenize_chinese_chars",
                "trim_offsets",
                "use_default_system_prompt",
                "wordpieces_prefix",
            ],
            "of tokenizers in Python; `tokenizer.json` says the same in its own way",
        ),
        Field::refused(
            &["fix_mistral_regex"],
            "save the tokenizer with the pattern that it is meant to have",
        ),
    ]],
};

/// The fields of `generation_config.json`, as transformers 5.24 has them.
pub const GENERATION_CONFIG: Fields = Fields {
    file: "`generation_config.json` of a model",
    groups: &[&[
        Field::applied(&["bos_token_id", "eos_token_id", "pad_token_id"])
            .with_note("the tokenizer's own tokens come first"),
        Field::neutral(
            &[
                "assistant_confidence_threshold",
                "assistant_early_exit",
                "assistant_lookbehind",
                "bad_words_ids",
                "begin_suppress_tokens",
                "constraints",
                "diversity_penalty",
                "do_sample",
                "dola_layers",
                "early_stopping",
                "encoder_no_repeat_ngram_size",
                "encoder_repetition_penalty",
                "epsilon_cutoff",
                "eta_cutoff",
                "exponential_decay_length_penalty",
                "force_words_ids",
                "forced_bos_token_id",
                "forced_decoder_ids",
                "forced_eos_token_id",
                "guidance_scale",
                "length_penalty",
                "low_memory",
                "max_length",
                "max_matching_ngram_size",
                "max_new_tokens",
                "max_time",
                "min_length",
                "min_new_tokens",
                "min_p",
                "no_repeat_ngram_size",
                "num_assistant_tokens",
                "num_assistant_tokens_schedule",
                "num_beam_groups",
                "num_beams",
                "num_return_sequences",
                "penalty_alpha",
                "prompt_lookup_num_tokens",
                "remove_invalid_values",
                "renormalize_logits",
                "repetition_penalty",
                "sequence_bias",
                "stop_strings",
                "suppress_tokens",
                "target_lookbehind",
                "temperature",
                "token_healing",
                "top_h",
                "top_k",
                "top_p",
                "typical_p",
                "watermarking_config",
            ],
            "how tokens are chosen is said where text is generated; greedy by default",
        ),
        Field::neutral(
            &[
                "_attn_implementation",
                "_from_model_config",
                "cache_config",
                "cache_implementation",
                "chat_format",
                "compile_config",
                "continuous_batching_config",
                "decoder_start_token_id",
                "disable_compile",
                "generation_kwargs",
                "is_assistant",
                "max_window_size",
                "output_attentions",
                "output_hidden_states",
                "output_logits",
                "output_scores",
                "prefill_chunk_size",
                "return_dict_in_generate",
                "return_legacy_cache",
                "transformers_version",
                "trust_remote_code",
                "use_cache",
                "user_token_id",
                "assistant_token_id",
            ],
            "how it is computed, and which outputs are returned",
        ),
    ]],
};

/// The named special tokens, in the order in which new ones get their ids.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The settings in the files beside `tokenizer.json`.
#[derive(Debug, Default)]
pub(crate) struct TokenizerConfig {
    fields: Map<String, Value>,
    /// Added tokens with their ids, if a file has such a list.
    listed: Option<Vec<(i64, AddedToken)>>,
    /// Tokens of `added_tokens.json`, which older tokenizers have, with their ids.
    older: Vec<(i64, String)>,
    pub(crate) class: TokenizerClass,
}

impl TokenizerConfig {
    /// Reads the settings of a directory.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Json`] if a file cannot be read, [`Error::Tokenizer`] for an unknown field or an invalid value.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let path = directory.join("tokenizer_config.json");
        let broken = |reason: String| Error::Tokenizer(format!("{}: {reason}", path.display()));
        let mut fields: Map<String, Value> = read_optional(&path)?;
        check(&fields).map_err(broken)?;
        let mut older = Map::new();
        if !fields.contains_key("added_tokens_decoder") {
            let path = directory.join("special_tokens_map.json");
            let tokens: Map<String, Value> = read_optional(&path)?;
            check(&tokens)
                .map_err(|reason| Error::Tokenizer(format!("{}: {reason}", path.display())))?;
            fields.extend(tokens);
            older = read_optional(&directory.join("added_tokens.json"))?;
        }
        let model: Map<String, Value> = read_optional(&directory.join("config.json"))?;
        let text = |fields: &Map<String, Value>, name| {
            fields.get(name).and_then(Value::as_str).map(str::to_owned)
        };
        let declared = text(&fields, "tokenizer_class").or_else(|| text(&model, "tokenizer_class"));
        let is_byte_level = || {
            let json = fs::read_to_string(directory.join("tokenizer.json"));
            json.is_ok_and(|json| json.contains("\"ByteLevel\""))
        };
        let model_type = text(&model, "model_type");
        let class = TokenizerClass::of(declared.as_deref(), model_type.as_deref(), is_byte_level);
        for (name, token) in class.default_tokens() {
            fields.entry(*name).or_insert_with(|| Value::from(*token));
        }
        let older = older.into_iter().filter_map(|(token, id)| Some((id.as_i64()?, token)));
        let older = older.collect();
        let listed = listed(&fields).map_err(broken)?;
        Ok(Self { fields, listed, older, class })
    }

    /// Reads the settings from a GGUF file's metadata.
    pub(crate) fn of_gguf(gguf: &Gguf) -> Result<Self> {
        let fields = serde_json::from_value(gguf.tokenizer_config()?);
        let fields = fields.map_err(json_error(gguf.path()))?;
        Ok(Self { fields, ..Self::default() })
    }

    /// A field of `tokenizer_config.json`.
    pub(crate) fn field(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// The text of a special token.
    pub(crate) fn token(&self, name: &str) -> Option<&str> {
        content(self.field(name)?)
    }

    /// The special tokens that have names, with their texts.
    pub(crate) fn named(&self) -> impl Iterator<Item = (String, String)> {
        let own = NAMED.iter().filter_map(|name| Some(((*name).to_owned(), self.field(name)?)));
        let tokens = own.chain(self.model_specific());
        tokens.filter_map(|(name, token)| Some((name, content(token)?.to_owned())))
    }

    /// The chat template that `tokenizer_config.json` holds.
    pub(crate) fn chat_template(&self) -> Result<Option<TemplateField>> {
        let Some(field) = self.field("chat_template") else { return Ok(None) };
        let template = serde_json::from_value(field.clone());
        template.map(Some).map_err(|_| {
            let expected = "expected a template, or a list of them with name and template";
            Error::Tokenizer(format!("chat_template of tokenizer_config.json: {expected}"))
        })
    }

    /// The tokens to add to a tokenizer, in this order. `own` are the tokens in its file, with their ids; the tokenizer has them already unless
    /// its class rebuilds it.
    pub(crate) fn tokens_to_add(&self, own: &[(i64, AddedToken)]) -> Vec<AddedToken> {
        let named: Vec<String> = self.named().map(|(_, text)| text).collect();
        let mut listed = self.listed.clone().unwrap_or_else(|| {
            let extra: Vec<AddedToken> = self.extra().map(|token| as_token(token, true)).collect();
            let is_special = |text: &String| {
                named.contains(text) || extra.iter().any(|token| token.content == *text)
            };
            let older = self
                .older
                .iter()
                .map(|(id, text)| (*id, AddedToken::from(text.clone(), is_special(text))));
            let mut listed: Vec<(i64, AddedToken)> = older.collect();
            for (id, token) in own {
                listed.retain(|(other, _)| other != id);
                listed.push((*id, token.clone()));
            }
            listed
        });
        listed.sort_by_key(|(id, _)| *id);
        let mut tokens: Vec<AddedToken> = listed.into_iter().map(|(_, token)| token).collect();
        let present = if self.class == TokenizerClass::AsWritten { own } else { &[] };
        let known = |tokens: &[AddedToken], text: &str| {
            let present = present.iter().map(|(_, token)| token);
            tokens.iter().chain(present).any(|token| token.content == text)
        };
        let fields = NAMED.iter().filter_map(|name| self.field(name));
        let specific = self.model_specific().map(|(_, token)| token);
        for token in fields.chain(specific).chain(self.extra()) {
            let token = as_token(token, true);
            if !known(&tokens, &token.content) {
                tokens.push(token);
            }
        }
        for token in &mut tokens {
            token.special |= named.contains(&token.content);
        }
        tokens
    }

    /// All special tokens, which Qwen2's tokenizer adds a second time.
    pub(crate) fn all_special(&self) -> Vec<AddedToken> {
        let named = self.named().map(|(_, text)| text);
        let extra = self.extra().filter_map(content).map(str::to_owned);
        named.chain(extra).map(|text| AddedToken::from(text, true)).collect()
    }

    /// Special tokens without names.
    fn extra(&self) -> impl Iterator<Item = &Value> {
        let field =
            |name| self.field(name).and_then(Value::as_array).filter(|list| !list.is_empty());
        let extra = field("extra_special_tokens").or_else(|| field("additional_special_tokens"));
        extra.into_iter().flatten()
    }

    /// Special tokens with model-specific names.
    fn model_specific(&self) -> impl Iterator<Item = (String, &Value)> {
        let own = self.fields.iter().filter(|(name, token)| is_model_specific(name, token));
        let listed = ["extra_special_tokens", "model_specific_special_tokens"];
        let listed = listed.into_iter().filter_map(|name| self.field(name)?.as_object()).flatten();
        own.chain(listed).map(|(name, token)| (name.clone(), token))
    }
}

/// Refuses unknown fields.
fn check(fields: &Map<String, Value>) -> Result<(), String> {
    let known = |(name, value): &(&String, &Value)| !is_model_specific(name, value);
    TOKENIZER_CONFIG.check(fields.iter().filter(known))?;
    for name in NAMED {
        match fields.get(name) {
            None | Some(Value::Null) => {}
            Some(token) if content(token).is_some() => {}
            Some(other) => return Err(format!("{name} is {other}, expected a token's text")),
        }
    }
    Ok(())
}

fn is_model_specific(name: &str, token: &Value) -> bool {
    name.ends_with("_token") && !NAMED.contains(&name) && content(token).is_some()
}

/// A token's text: the value itself, or the field `content` of an object.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// A token to be added. Fields that its object lacks have transformers' defaults.
fn as_token(token: &Value, special: bool) -> AddedToken {
    let flag = |name: &str| token.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(special);
    AddedToken {
        content: content(token).unwrap_or_default().to_owned(),
        single_word: flag("single_word").unwrap_or(false),
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(!special),
        special,
    }
}

/// `added_tokens_decoder`.
fn listed(fields: &Map<String, Value>) -> Result<Option<Vec<(i64, AddedToken)>>, String> {
    let Some(listed) = fields.get("added_tokens_decoder") else { return Ok(None) };
    let expected = "expected tokens by their ids, each an object with content";
    let listed = listed.as_object().ok_or_else(|| format!("added_tokens_decoder: {expected}"))?;
    let token = |(id, token): (&String, &Value)| match id.parse() {
        Ok(id) if token.is_object() && content(token).is_some() => Ok((id, as_token(token, false))),
        _ => Err(format!("added_tokens_decoder has {id}: {token}, {expected}")),
    };
    listed.iter().map(token).collect::<Result<_, _>>().map(Some)
}

/// One chat template, or several with names.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a template, or a list of templates with names")]
pub(crate) enum TemplateField {
    One(String),
    Named(Vec<NamedTemplate>),
}

/// One of several chat templates.
#[derive(Debug, Deserialize)]
pub(crate) struct NamedTemplate {
    pub(crate) name: String,
    pub(crate) template: String,
}

/// The fields of `generation_config.json` and `config.json` that are read.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct TokenIds {
    pub(crate) bos_token_id: Option<i64>,
    eos_token_id: Option<OneOrMany>,
    pub(crate) pad_token_id: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a token id, or a list of them")]
enum OneOrMany {
    One(i64),
    Many(Vec<i64>),
}

/// Whether an id is present: some published configs write −1 for a missing token.
pub(crate) fn present(id: &i64) -> bool {
    *id >= 0
}

impl TokenIds {
    /// The tokens that end a text; empty if the file names none.
    pub(crate) fn eos(&self) -> Vec<i64> {
        let ids = match &self.eos_token_id {
            None => &[],
            Some(OneOrMany::One(id)) => std::slice::from_ref(id),
            Some(OneOrMany::Many(ids)) => ids.as_slice(),
        };
        ids.iter().copied().filter(present).collect()
    }

    /// The fields of `generation_config.json`.
    ///
    /// # Errors
    /// As [`read_optional`]; [`Error::Tokenizer`] for a field that is not known.
    pub(crate) fn of_generation_config(path: &Path) -> Result<Self> {
        let fields: Map<String, Value> = read_optional(path)?;
        GENERATION_CONFIG
            .check(&fields)
            .map_err(|reason| Error::Tokenizer(format!("{}: {reason}", path.display())))?;
        read_optional(path)
    }
}

/// Reads a JSON file; a missing one is the default.
pub(crate) fn read_optional<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    match read_json(path) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(T::default()),
        read => read,
    }
}
