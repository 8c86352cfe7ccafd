//! The tokenizer in a GGUF file's metadata, as `tokenizer.json` and `tokenizer_config.json` would hold it.

use serde_json::{Map, Value as Json, json};

use crate::{Gguf, Result};

/// The pattern of Llama 3's tokenizer: up to three digits stay together.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The pattern of Qwen2's tokenizer: as Llama 3's, but digits one by one.
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Values of `tokenizer.ggml.token_type`.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// What to do about a tokenizer that cannot be read.
const INSTEAD: &str = "use the model's Hugging Face directory";

impl Gguf {
    /// What `tokenizer.json` would hold, for the byte-level BPE of GPT-2's kind.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) if the file has no tokenizer, one of another kind
    /// (SentencePiece), or an unknown pre-tokenizer.
    pub fn tokenizer_json(&self) -> Result<Json> {
        match self.optional("tokenizer.ggml.model", "a string")? {
            Some("gpt2") => {}
            Some(other) => {
                return Err(self.broken(format!(
                    "its tokenizer is of kind {other:?}, expected \"gpt2\" (byte-level BPE); {INSTEAD}"
                )));
            }
            None => return Err(self.broken("it holds no tokenizer".to_owned())),
        }
        let pre = self.optional::<&str>("tokenizer.ggml.pre", "a string")?;
        // Llama 3's does not build up whole words of the vocabulary from merges, and begins prompts with the bos token by default.
        let is_llama3 = pre == Some("llama-bpe");
        let normalizer = (pre == Some("qwen2")).then(|| json!({ "type": "NFC" }));
        let tokens = self.token_texts()?;
        let added_tokens = self.added_tokens(&tokens)?;
        let vocab: Map<String, Json> =
            tokens.iter().enumerate().map(|(id, &token)| (token.to_owned(), json!(id))).collect();
        if vocab.len() != tokens.len() {
            return Err(self.broken("tokenizer.ggml.tokens holds a token twice".to_owned()));
        }
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added_tokens,
            "normalizer": normalizer,
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": self.splitting_steps(pre)? },
            "post_processor": self.post_processor(&tokens, is_llama3)?,
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": is_llama3,
                "vocab": vocab,
                "merges": self.merges()?,
            },
        }))
    }

    /// What `tokenizer_config.json` would hold: the special tokens' texts and the chat template.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) if a token id is not an id of the vocabulary.
    pub fn tokenizer_config(&self) -> Result<Json> {
        let tokens = self.token_texts()?;
        let mut config = Map::new();
        for (key, kind) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")]
        {
            let id = self.token_id(kind)?;
            config.insert(format!("{key}_token"), json!(id.and_then(|id| tokens.get(id as usize))));
        }
        if let Some(template) = self.optional::<&str>("tokenizer.chat_template", "a string")? {
            config.insert("chat_template".to_owned(), json!(template));
        }
        config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
        config.insert("model_max_length".to_owned(), json!(self.size("context_length")?));
        config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
        Ok(config.into())
    }

    /// How a byte-level BPE splits text before merging; `tokenizer.ggml.pre` names it.
    fn splitting_steps(&self, pre: Option<&str>) -> Result<Json> {
        Ok(match pre {
            Some("smollm") => {
                json!([{ "type": "Digits", "individual_digits": true }, byte_level(true)])
            }
            Some("gpt-2") => json!([byte_level(true)]),
            Some("llama-bpe") => json!([split(LLAMA3_SPLIT), byte_level(false)]),
            Some("qwen2") => json!([split(QWEN2_SPLIT), byte_level(false)]),
            other => {
                return Err(self.broken(format!(
                    "its pre-tokenizer is {}, expected smollm, gpt-2, llama-bpe or qwen2; {INSTEAD}",
                    other.unwrap_or("not named")
                )));
            }
        })
    }

    fn token_texts(&self) -> Result<Vec<&str>> {
        self.required("tokenizer.ggml.tokens", "an array of strings")
    }

    fn merges(&self) -> Result<Vec<Json>> {
        let pair =
            |merge: &str| match merge.split_once(' ') {
                Some((left, right)) if !left.is_empty() && !right.is_empty() => {
                    Ok(json!([left, right]))
                }
                _ => Err(self
                    .broken(format!("the merge {merge:?} is not two tokens with a space between"))),
            };
        let merges: Vec<&str> = self.required("tokenizer.ggml.merges", "an array of strings")?;
        merges.into_iter().map(pair).collect()
    }

    /// Control tokens as special ones, user-defined tokens as added ones.
    fn added_tokens(&self, tokens: &[&str]) -> Result<Vec<Json>> {
        let types: Vec<i64> = self.required("tokenizer.ggml.token_type", "an array of integers")?;
        if types.len() != tokens.len() {
            let (types, tokens) = (types.len(), tokens.len());
            return Err(self.broken(format!("{types} token types for {tokens} tokens")));
        }
        let mut added = Vec::new();
        for (id, (token, token_type)) in tokens.iter().zip(types).enumerate() {
            let special = match token_type {
                UNKNOWN | CONTROL => true,
                USER_DEFINED => false,
                _ => continue,
            };
            added.push(json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": special,
            }));
        }
        Ok(added)
    }

    /// Puts the bos token before and the eos token after a prompt, where the file asks for it.
    fn post_processor(&self, tokens: &[&str], add_bos_by_default: bool) -> Result<Json> {
        let mut special_tokens = Map::new();
        let mut piece = |kind: &str, wanted: bool| -> Result<Option<Json>> {
            let key = format!("tokenizer.ggml.add_{kind}_token");
            if !self.optional(&key, "a bool")?.unwrap_or(wanted) {
                return Ok(None);
            }
            let id = self.token_id(kind)?;
            let Some(&token) = id.and_then(|id| tokens.get(id as usize)) else {
                return Err(
                    self.broken(format!("prompts want a {kind} token, and the file names none"))
                );
            };
            special_tokens
                .insert(token.to_owned(), json!({ "id": token, "ids": [id], "tokens": [token] }));
            Ok(Some(json!({ "SpecialToken": { "id": token, "type_id": 0 } })))
        };
        let (bos, eos) = (piece("bos", add_bos_by_default)?, piece("eos", false)?);
        if bos.is_none() && eos.is_none() {
            return Ok(Json::Null);
        }
        let around = |id: &str| {
            let text = json!({ "Sequence": { "id": id, "type_id": 0 } });
            bos.clone().into_iter().chain([text]).chain(eos.clone())
        };
        let single: Vec<Json> = around("A").collect();
        let pair: Vec<Json> = around("A").chain(around("B")).collect();
        Ok(json!({
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": special_tokens,
        }))
    }
}

/// The step that splits text into words and maps their bytes to printable characters.
fn byte_level(use_regex: bool) -> Json {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": true,
        "use_regex": use_regex,
    })
}

/// The step that splits text by a pattern, and keeps the parts between.
fn split(regex: &str) -> Json {
    json!({
        "type": "Split",
        "pattern": { "Regex": regex },
        "behavior": "Isolated",
        "invert": false,
    })
}
