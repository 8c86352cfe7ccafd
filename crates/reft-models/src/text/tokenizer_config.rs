//! The small JSON files beside a tokenizer: special tokens, their ids, the chat template.

use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{Error, Gguf, Result, read_json};

/// What is read of `tokenizer_config.json`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct TokenizerConfig {
    pub(crate) bos_token: Option<SpecialToken>,
    pub(crate) eos_token: Option<SpecialToken>,
    pub(crate) unk_token: Option<SpecialToken>,
    pub(crate) pad_token: Option<SpecialToken>,
    pub(crate) chat_template: Option<TemplateField>,
}

impl TokenizerConfig {
    /// The one in a GGUF file's metadata.
    pub(crate) fn of_gguf(gguf: &Gguf) -> Result<Self> {
        let broken = |source| Error::Json { path: gguf.path().to_owned(), source };
        serde_json::from_value(gguf.tokenizer_config()?).map_err(broken)
    }
}

/// A special token: its text, or an object around it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum SpecialToken {
    Text(String),
    Added { content: String },
}

impl SpecialToken {
    /// The token's text.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

/// One chat template, or several with names.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
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

/// What is read of `generation_config.json` and `config.json`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct TokenIds {
    pub(crate) bos_token_id: Option<i64>,
    eos_token_id: Option<OneOrMany>,
    pub(crate) pad_token_id: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(i64),
    Many(Vec<i64>),
}

/// Some published configs write −1 where they mean that there is no such token.
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
}

/// Reads a JSON file; a missing one is the default.
pub(crate) fn read_optional<T: DeserializeOwned + Default>(path: &Path) -> Result<T> {
    match read_json(path) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(T::default()),
        read => read,
    }
}
