//! Text to token ids and back.

use std::fmt::Display;
use std::fs;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::utils::truncation::truncate_encodings;
use tokenizers::{AddedToken, ModelWrapper, PostProcessor, TruncationParams};

use crate::text::tokenizer_class::TokenizerClass;
use crate::text::tokenizer_config::{TokenIds, TokenizerConfig, present, read_optional};
use crate::{DecodeStream, Error, Gguf, Result, Row, io_error, json_error};

/// A model's tokenizer with its special tokens.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos_id: Option<i64>,
    eos_ids: Vec<i64>,
    pad_id: Option<i64>,
    /// The texts of special tokens.
    special: Vec<String>,
    /// Whether spaces before punctuation are removed from decoded text.
    cleans_up: bool,
}

impl Tokenizer {
    /// Whether a model has a tokenizer: `tokenizer.json` in its directory, or one in its GGUF file.
    ///
    /// # Errors
    /// Errors of [`Gguf::open`].
    pub fn is_in(path: &Path) -> Result<bool> {
        match path.is_file() {
            true => Gguf::open(path)?.has_tokenizer(),
            false => Ok(path.join("tokenizer.json").exists()),
        }
    }

    /// Opens the tokenizer of a model: a Hugging Face directory (`tokenizer.json`; class and special tokens from `tokenizer_config.json`,
    /// `generation_config.json` and `config.json` where they are), or the metadata of a GGUF file.
    ///
    /// Tokens that only `tokenizer_config.json` names are added as transformers adds them. The model may have no embeddings for them; then it
    /// refuses texts that contain them.
    ///
    /// # Errors
    /// [`Error::Io`] if `tokenizer.json` is missing, [`Error::Json`] or [`Error::Tokenizer`] if a file is broken or has an unknown field;
    /// errors of [`Gguf::open`]; [`Error::Format`] if the GGUF file has no readable tokenizer.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            let gguf = Gguf::open(path)?;
            let json = serde_json::to_vec(&gguf.tokenizer_json()?).map_err(json_error(path))?;
            let generation =
                serde_json::from_value(gguf.generation_config()?).map_err(json_error(path))?;
            return Self::from_parts(path, &json, &TokenizerConfig::of_gguf(&gguf)?, &[generation]);
        }
        let file = path.join("tokenizer.json");
        let json = fs::read(&file).map_err(io_error("read", &file))?;
        let generation = TokenIds::of_generation_config(&path.join("generation_config.json"))?;
        let model: TokenIds = read_optional(&path.join("config.json"))?;
        Self::from_parts(path, &json, &TokenizerConfig::open(path)?, &[generation, model])
    }

    /// `ids`: the source with the highest priority first.
    fn from_parts(
        path: &Path,
        json: &[u8],
        config: &TokenizerConfig,
        ids: &[TokenIds],
    ) -> Result<Self> {
        let broken =
            |reason: &dyn Display| tokenizer_error(format!("{}: {reason}", path.display()));
        let own = own_tokens(json).map_err(|failed| broken(&failed))?;
        let inner = match config.class {
            TokenizerClass::AsWritten => tokenizers::Tokenizer::from_bytes(json),
            class => {
                let file = serde_json::from_slice(json).map_err(|failed| broken(&failed))?;
                let file = class.rebuilt(file, |name| config.field(name).cloned());
                tokenizers::Tokenizer::from_bytes(Value::from(file).to_string())
            }
        };
        let mut inner = inner.map_err(|failed| broken(&failed))?;
        // The file may set both, but callers decide about length and padding.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|failed| broken(&failed))?;
        inner.add_tokens(config.tokens_to_add(&own)).map_err(|failed| broken(&failed))?;
        if config.class == TokenizerClass::Qwen2 {
            inner.add_tokens(config.all_special()).map_err(|failed| broken(&failed))?;
        }
        let is_set = |name: &str| config.field(name).is_some_and(|set| set == true);
        inner.set_encode_special_tokens(is_set("split_special_tokens"));
        let is_bpe = matches!(inner.get_model(), ModelWrapper::BPE(_));
        let cleans_up = is_set("clean_up_tokenization_spaces")
            && (!is_bpe
                || is_set(
                    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
                ));
        let id_of = |name: &str| inner.token_to_id(config.token(name)?).map(i64::from);
        let first =
            |id: fn(&TokenIds) -> Option<i64>| ids.iter().find_map(|ids| id(ids).filter(present));
        let bos_id = id_of("bos_token").or_else(|| first(|ids| ids.bos_token_id));
        let pad_id = id_of("pad_token").or_else(|| first(|ids| ids.pad_token_id));
        let mut eos_ids = Vec::from_iter(id_of("eos_token"));
        let further = ids.iter().map(TokenIds::eos).find(|ids| !ids.is_empty()).unwrap_or_default();
        eos_ids.extend(further.into_iter().filter(|id| !eos_ids.contains(id)).collect::<Vec<_>>());
        let special = inner.get_added_tokens_decoder().into_values();
        let special = special.filter(|token| token.special).map(|token| token.content).collect();
        Ok(Self { inner, bos_id, eos_ids, pad_id, special, cleans_up })
    }

    /// Turns the word cache off, so that memory does not grow. By default every thread that encodes caches the tokens of up to 10,000 words for
    /// its lifetime. If the tokenizer does not split texts into words, a cached word is a whole text of up to 255 bytes.
    pub fn keep_no_words(&mut self) {
        let mut model = self.inner.get_model().clone();
        model.resize_cache(0);
        self.inner.with_model(model);
    }

    /// The ids of `text`, with the special tokens around every text (such as bos) if `add_special_tokens`.
    ///
    /// Text that spells a special token becomes that token.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the text cannot be tokenised.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<i64>> {
        let encoding = self.inner.encode_fast(text, add_special_tokens).map_err(tokenizer_error)?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// One or two texts as the row of an encoder, with the special tokens and token types of the tokenizer's file. Rows are truncated at the
    /// end to `max_length` tokens; with two texts the longer one is cut first, as in transformers.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_row(&self, text: &str, second: Option<&str>, max_length: usize) -> Result<Row> {
        let encode = |text: &str| self.inner.encode_fast(text, false).map_err(tokenizer_error);
        let mut second = second.map(encode).transpose()?;
        if let Some(second) = &mut second {
            second.set_type_ids(vec![1; second.len()]);
        }
        let processor = self.inner.get_post_processor();
        let around = processor.map_or(0, |own| own.added_tokens(second.is_some()));
        let max_length = max_length.saturating_sub(around);
        let params = TruncationParams { max_length, ..TruncationParams::default() };
        let (first, second) =
            truncate_encodings(encode(text)?, second, &params).map_err(tokenizer_error)?;
        let encoding = self.inner.post_process(first, second, true).map_err(tokenizer_error)?;
        let numbers = |of: &[u32]| of.iter().map(|&number| i64::from(number)).collect::<Vec<_>>();
        let types = Some(numbers(encoding.get_type_ids()));
        let token_types = types.filter(|types| types.iter().any(|own| *own != 0));
        Ok(Row { token_types, ..Row::prompt(numbers(encoding.get_ids())) })
    }

    /// The ids of `text` without special tokens around it, each with its byte range in the text.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_with_places(&self, text: &str) -> Result<Vec<(i64, Range<usize>)>> {
        let encoding = self.inner.encode(text, false).map_err(tokenizer_error)?;
        let places = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).zip(places).collect())
    }

    /// Whether a text ends with a special token, such as one that ends a turn.
    pub fn ends_with_special(&self, text: &str) -> bool {
        self.special.iter().any(|token| text.ends_with(token.as_str()))
    }

    /// The text of `ids`, without special tokens if `skip_special`. Ids past the vocabulary have no text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if an id is negative or the decoder refuses them.
    pub fn decode(&self, ids: &[i64], skip_special: bool) -> Result<String> {
        let ids: Result<Vec<u32>, _> = ids.iter().map(|&id| u32::try_from(id)).collect();
        let ids = ids.map_err(|_| tokenizer_error("a token id is negative; ids start at 0"))?;
        let text = self.inner.decode(&ids, skip_special).map_err(tokenizer_error)?;
        Ok(if self.cleans_up { cleaned_up(text) } else { text })
    }

    /// The contents of `tokenizer.json` for the present tokenizer, including the changes by other files.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if a part of it cannot be written as JSON.
    pub(crate) fn json(&self) -> Result<Value> {
        let text = self.inner.to_string(false).map_err(tokenizer_error)?;
        serde_json::from_str(&text).map_err(tokenizer_error)
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

    /// The tokens that end a reply. The first is the tokenizer's own end token: training uses this token.
    pub fn eos_ids(&self) -> &[i64] {
        &self.eos_ids
    }

    /// The end token to train on: the first of [`Tokenizer::eos_ids`].
    pub fn eos_id(&self) -> Option<i64> {
        self.eos_ids.first().copied()
    }

    /// The padding token, if the model has one. It may be the end token: mask by length, not by id.
    pub fn pad_id(&self) -> Option<i64> {
        self.pad_id
    }
}

/// The tokens that `tokenizer.json` adds to its vocabulary, with their ids.
fn own_tokens(json: &[u8]) -> serde_json::Result<Vec<(i64, AddedToken)>> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Token>,
    }
    #[derive(Deserialize)]
    struct Token {
        id: i64,
        #[serde(flatten)]
        token: AddedToken,
    }
    let file: File = serde_json::from_slice(json)?;
    Ok(file.added_tokens.into_iter().map(|Token { id, token }| (id, token)).collect())
}

/// Removes spaces that WordPiece's decoder leaves.
fn cleaned_up(text: String) -> String {
    const ENGLISH: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    ENGLISH.iter().fold(text, |text, (from, to)| text.replace(from, to))
}

fn tokenizer_error(reason: impl Display) -> Error {
    Error::Tokenizer(reason.to_string())
}
