//! The tokens of a GGUF file.

use serde_json::{Map, Value as Json, json};

use crate::{Gguf, Result};

/// Values of `tokenizer.ggml.token_type`.
pub(crate) const NORMAL: i64 = 1;
pub(crate) const UNKNOWN: i64 = 2;
pub(crate) const CONTROL: i64 = 3;
pub(crate) const USER_DEFINED: i64 = 4;
pub(crate) const UNUSED: i64 = 5;
pub(crate) const BYTE: i64 = 6;

/// The character for a space in SentencePiece pieces.
pub(crate) const SPACE: &str = "\u{2581}";

/// Tokens with their types, in the order of their ids.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    pub(crate) texts: Vec<String>,
    pub(crate) types: Vec<i64>,
}

impl Gguf {
    /// The tokens of the file.
    ///
    /// A user-defined piece of SentencePiece is matched in the unchanged text, so it is spelled with plain spaces.
    pub(crate) fn vocabulary(&self) -> Result<Vocabulary> {
        let mut texts: Vec<String> =
            self.required("tokenizer.ggml.tokens", "an array of strings")?;
        let types: Vec<i64> = self.required("tokenizer.ggml.token_type", "an array of integers")?;
        if types.len() != texts.len() {
            let (types, tokens) = (types.len(), texts.len());
            return Err(self.broken(format!("{types} token types for {tokens} tokens")));
        }
        if self.sentencepiece()?.is_some() {
            let own = texts.iter_mut().zip(&types).filter(|(_, own)| **own == USER_DEFINED);
            own.for_each(|(text, _)| *text = text.replace(SPACE, " "));
        }
        Ok(Vocabulary { texts, types })
    }

    /// `tokenizer.ggml.{name}`, or its default.
    pub(crate) fn flag(&self, name: &str, usual: bool) -> Result<bool> {
        Ok(self.optional(&format!("tokenizer.ggml.{name}"), "a bool")?.unwrap_or(usual))
    }
}

impl Vocabulary {
    /// The ids of the tokens by their texts.
    ///
    /// # Errors
    /// If two tokens have one text.
    pub(crate) fn ids(&self) -> std::result::Result<Map<String, Json>, String> {
        let mut ids = Map::new();
        for (id, text) in self.texts.iter().enumerate() {
            if let Some(other) = ids.insert(text.clone(), json!(id)) {
                return Err(format!(
                    "tokenizer.ggml.tokens holds {text:?} twice, as tokens {other} and {id}"
                ));
            }
        }
        Ok(ids)
    }

    /// Control tokens as special ones, user-defined tokens as added ones.
    pub(crate) fn added_tokens(&self) -> Vec<Json> {
        let mut added = Vec::new();
        for (id, (token, own)) in self.texts.iter().zip(&self.types).enumerate() {
            let special = match *own {
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
        added
    }
}
