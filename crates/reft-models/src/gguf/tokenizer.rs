//! The tokenizer in a GGUF file's metadata, as `tokenizer.json` and `tokenizer_config.json` would hold it.

use serde_json::{Map, Value as Json, json};

use crate::gguf::fields::NAMED_TEMPLATE;
use crate::gguf::vocabulary::Vocabulary;
use crate::{Gguf, Result};

/// The pattern of Llama 3's tokenizer: up to three digits stay together.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The pattern of Qwen2's tokenizer: as Llama 3's, but digits one by one.
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Makes the steps of a pre-tokenizer.
type Steps = fn() -> Json;

/// How byte-level BPEs split text, by llama.cpp's names: the steps of `tokenizer.json`.
pub(crate) const PRE_TOKENIZERS: [(&str, Steps); 4] = [
    ("smollm", || json!([{ "type": "Digits", "individual_digits": true }, byte_level(true)])),
    ("gpt-2", || json!([byte_level(true)])),
    ("llama-bpe", || json!([split(LLAMA3_SPLIT), byte_level(false)])),
    ("qwen2", || json!([split(QWEN2_SPLIT), byte_level(false)])),
];

/// The value of `tokenizer.ggml.model` in a file without a tokenizer.
pub(crate) const NO_TOKENIZER: &str = "none";

/// Advice about a tokenizer that cannot be read.
const INSTEAD: &str = "use the model's Hugging Face directory";

impl Gguf {
    /// Whether the file has a tokenizer; in some files its kind is `none`.
    pub(crate) fn has_tokenizer(&self) -> Result<bool> {
        let kind = self.optional::<&str>("tokenizer.ggml.model", "a string")?;
        Ok(kind.is_some_and(|kind| kind != NO_TOKENIZER))
    }

    /// The contents of `tokenizer.json`, for the byte-level BPE of GPT-2's kind and for SentencePiece.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) if the file has no tokenizer, one of another kind, an unknown pre-tokenizer, or tokenizer
    /// metadata that is refused ([`GGUF`](crate::GGUF)).
    pub fn tokenizer_json(&self) -> Result<Json> {
        self.check_tokenizer_keys()?;
        if let Some(kind) = self.sentencepiece()? {
            return self.sentencepiece_json(kind);
        }
        match self.optional("tokenizer.ggml.model", "a string")? {
            Some("gpt2") => self.byte_level_json(),
            None | Some(NO_TOKENIZER) => Err(self.broken("it holds no tokenizer".to_owned())),
            Some(other) => Err(self.broken(format!(
                "its tokenizer is of kind {other:?}, expected \"gpt2\" (byte-level BPE), \"llama\" or \"t5\" (SentencePiece); {INSTEAD}"
            ))),
        }
    }

    fn byte_level_json(&self) -> Result<Json> {
        let pre = self.optional::<&str>("tokenizer.ggml.pre", "a string")?;
        // Llama 3's tokenizer takes whole words of the vocabulary without merges, and begins prompts with the bos token by default.
        let is_llama3 = pre == Some("llama-bpe");
        let normalizer = (pre == Some("qwen2")).then(|| json!({ "type": "NFC" }));
        let vocabulary = self.vocabulary()?;
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": vocabulary.added_tokens(),
            "normalizer": normalizer,
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": self.splitting_steps(pre)? },
            "post_processor": self.post_processor(&vocabulary, (is_llama3, false))?,
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
                "vocab": vocabulary.ids().map_err(|reason| self.broken(reason))?,
                "merges": self.merges()?,
            },
        }))
    }

    /// The contents of `tokenizer_config.json`: the special tokens' texts and the chat template.
    ///
    /// # Errors
    /// [`Error::Format`](crate::Error::Format) if a token id is not an id of the vocabulary.
    pub fn tokenizer_config(&self) -> Result<Json> {
        let tokens = self.vocabulary()?.texts;
        let mut config = Map::new();
        for (key, kind) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")]
        {
            let id = self.token_id(kind)?;
            config.insert(format!("{key}_token"), json!(id.and_then(|id| tokens.get(id as usize))));
        }
        if let Some(template) = self.optional::<&str>("tokenizer.chat_template", "a string")? {
            let mut named = vec![json!({ "name": "default", "template": template })];
            for (key, _) in self.metadata() {
                if let Some(name) = key.strip_prefix(NAMED_TEMPLATE) {
                    let template: Option<&str> = self.optional(key, "a string")?;
                    named.push(json!({ "name": name, "template": template }));
                }
            }
            let field = if named.len() == 1 { json!(template) } else { json!(named) };
            config.insert("chat_template".to_owned(), field);
        }
        config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
        config.insert("model_max_length".to_owned(), json!(self.size("context_length")?));
        config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
        Ok(config.into())
    }

    /// How a byte-level BPE splits text before merging; `tokenizer.ggml.pre` names it.
    fn splitting_steps(&self, pre: Option<&str>) -> Result<Json> {
        let known = PRE_TOKENIZERS.iter().find(|(name, _)| Some(*name) == pre);
        known.map(|(_, steps)| steps()).ok_or_else(|| {
            let names: Vec<&str> = PRE_TOKENIZERS.iter().map(|(name, _)| *name).collect();
            let (found, known) = (pre.unwrap_or("not named"), names.join(", "));
            self.broken(format!("its pre-tokenizer is {found}, expected one of {known}; {INSTEAD}"))
        })
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

    /// Adds the bos token before and the eos token after a prompt if the file asks for it; `usual`: the default.
    pub(crate) fn post_processor(
        &self,
        vocabulary: &Vocabulary,
        usual: (bool, bool),
    ) -> Result<Json> {
        let mut special_tokens = Map::new();
        let mut piece = |kind: &str, usual: bool| -> Result<Option<Json>> {
            if !self.flag(&format!("add_{kind}_token"), usual)? {
                return Ok(None);
            }
            let id = self.token_id(kind)?;
            let Some(token) = id.and_then(|id| vocabulary.texts.get(id as usize)) else {
                return Err(
                    self.broken(format!("prompts want a {kind} token, and the file names none"))
                );
            };
            special_tokens
                .insert(token.clone(), json!({ "id": token, "ids": [id], "tokens": [token] }));
            Ok(Some(json!({ "SpecialToken": { "id": token, "type_id": 0 } })))
        };
        let (bos, eos) = (piece("bos", usual.0)?, piece("eos", usual.1)?);
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
