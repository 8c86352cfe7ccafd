//! Text to token ids and back.

use std::fmt::Display;
use std::fs;
use std::path::Path;

use crate::text::tokenizer_config::{
    SpecialToken, TokenIds, TokenizerConfig, present, read_optional,
};
use crate::{DecodeStream, Error, Gguf, Result, io_error};

/// A model's tokenizer with its special tokens.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos_id: Option<i64>,
    eos_ids: Vec<i64>,
    pad_id: Option<i64>,
}

impl Tokenizer {
    /// Opens the tokenizer of a model: a Hugging Face directory (`tokenizer.json`, and the special tokens from `tokenizer_config.json`,
    /// `generation_config.json` and `config.json` where they are), or the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`Error::Io`] if `tokenizer.json` is missing, [`Error::Json`] or [`Error::Tokenizer`] if a file is broken or names a
    /// token that is not in the vocabulary; those of [`Gguf::open`], [`Error::Format`] if the file holds none that can be read.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            let gguf = Gguf::open(path)?;
            let parse = |source| Error::Json { path: path.to_owned(), source };
            let json = serde_json::to_vec(&gguf.tokenizer_json()?).map_err(parse)?;
            let generation = serde_json::from_value(gguf.generation_config()?).map_err(parse)?;
            return Self::from_parts(path, &json, &TokenizerConfig::of_gguf(&gguf)?, &[generation]);
        }
        let file = path.join("tokenizer.json");
        let json = fs::read(&file).map_err(io_error("read", &file))?;
        let generation: TokenIds = read_optional(&path.join("generation_config.json"))?;
        let model: TokenIds = read_optional(&path.join("config.json"))?;
        let config: TokenizerConfig = read_optional(&path.join("tokenizer_config.json"))?;
        Self::from_parts(path, &json, &config, &[generation, model])
    }

    /// `ids`: the most telling source first.
    fn from_parts(
        path: &Path,
        json: &[u8],
        config: &TokenizerConfig,
        ids: &[TokenIds],
    ) -> Result<Self> {
        let broken =
            |reason: &dyn Display| tokenizer_error(format!("{}: {reason}", path.display()));
        let mut inner =
            tokenizers::Tokenizer::from_bytes(json).map_err(|failed| broken(&failed))?;
        // Both may be baked into the file; length and padding are the caller's business here.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|failed| broken(&failed))?;
        let id_of = |token: &Option<SpecialToken>| {
            let Some(text) = token.as_ref().map(SpecialToken::text) else { return Ok(None) };
            let unknown =
                || broken(&format!("the special token {text:?} is not in the vocabulary"));
            inner.token_to_id(text).map(|id| Some(i64::from(id))).ok_or_else(unknown)
        };
        let first =
            |id: fn(&TokenIds) -> Option<i64>| ids.iter().find_map(|ids| id(ids).filter(present));
        let bos_id = id_of(&config.bos_token)?.or_else(|| first(|ids| ids.bos_token_id));
        let pad_id = id_of(&config.pad_token)?.or_else(|| first(|ids| ids.pad_token_id));
        let mut eos_ids = Vec::from_iter(id_of(&config.eos_token)?);
        let further = ids.iter().map(TokenIds::eos).find(|ids| !ids.is_empty()).unwrap_or_default();
        eos_ids.extend(further.into_iter().filter(|id| !eos_ids.contains(id)).collect::<Vec<_>>());
        Ok(Self { inner, bos_id, eos_ids, pad_id })
    }

    /// The ids of `text`, with the tokens that the model wants around every text (such as bos) if `add_special_tokens`.
    ///
    /// Text that spells a special token becomes that token.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the text cannot be tokenised.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<i64>> {
        let encoding = self.inner.encode_fast(text, add_special_tokens).map_err(tokenizer_error)?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// The text of `ids`, without special tokens if `skip_special`. Ids past the vocabulary have no text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if an id is negative or the decoder refuses them.
    pub fn decode(&self, ids: &[i64], skip_special: bool) -> Result<String> {
        let ids: Result<Vec<u32>, _> = ids.iter().map(|&id| u32::try_from(id)).collect();
        let ids = ids.map_err(|_| tokenizer_error("a token id is negative; ids start at 0"))?;
        self.inner.decode(&ids, skip_special).map_err(tokenizer_error)
    }

    /// Starts decoding token by token, as they are generated.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, skip_special)
    }

    /// Number of tokens, added ones included. The model's embedding may have more rows.
    pub fn vocab_size(&self) -> i64 {
        self.inner.get_vocab_size(true) as i64
    }

    /// The id of a token given by its exact text.
    pub fn token_id(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// The token that begins a text, if the model has one.
    pub fn bos_id(&self) -> Option<i64> {
        self.bos_id
    }

    /// The tokens that end a reply. The first is the tokenizer's own end token, the one to train on.
    pub fn eos_ids(&self) -> &[i64] {
        &self.eos_ids
    }

    /// The end token to train on: the first of [`Tokenizer::eos_ids`].
    pub fn eos_id(&self) -> Option<i64> {
        self.eos_ids.first().copied()
    }

    /// The token that fills up short rows, if the model has one. It may be the end token: mask by length, not by id.
    pub fn pad_id(&self) -> Option<i64> {
        self.pad_id
    }
}

fn tokenizer_error(reason: impl Display) -> Error {
    Error::Tokenizer(reason.to_string())
}
