//! SentencePiece vocabularies of GGUF files: pieces with scores and types.

use std::collections::HashMap;

use serde_json::{Value as Json, json};
use tokenizers::normalizers::Precompiled;

use crate::gguf::vocabulary::{BYTE, NORMAL, SPACE, UNKNOWN, Vocabulary};
use crate::{Gguf, Result};

/// The algorithm that splits a text into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SentencePiece {
    /// Adjacent pieces are merged; the pair with the best score of its merged piece comes first (`tokenizer.ggml.model` "llama").
    Merged,
    /// The pieces with the best sum of scores (`tokenizer.ggml.model` "t5").
    Unigram,
}

impl SentencePiece {
    /// The default for adding (bos, eos) around every text.
    const fn wants(self) -> (bool, bool) {
        match self {
            Self::Merged => (true, false),
            Self::Unigram => (false, true),
        }
    }
}

impl Gguf {
    /// The kind of its SentencePiece vocabulary, if it has one.
    pub(crate) fn sentencepiece(&self) -> Result<Option<SentencePiece>> {
        Ok(match self.optional("tokenizer.ggml.model", "a string")? {
            Some("llama") => Some(SentencePiece::Merged),
            Some("t5") => Some(SentencePiece::Unigram),
            _ => None,
        })
    }

    /// llama.cpp's default id of a special token that the file does not name.
    pub(crate) fn usual_token_id(&self, kind: &str) -> Result<Option<i64>> {
        Ok(match (self.sentencepiece()?, kind) {
            (Some(SentencePiece::Merged), "unknown") => Some(0),
            (Some(SentencePiece::Merged), "bos") => Some(1),
            (Some(SentencePiece::Merged), "eos") => Some(2),
            (Some(SentencePiece::Unigram), "padding") => Some(0),
            (Some(SentencePiece::Unigram), "eos") => Some(1),
            (Some(SentencePiece::Unigram), "unknown") => Some(2),
            _ => None,
        })
    }

    /// The contents of `tokenizer.json` for a SentencePiece vocabulary.
    ///
    /// A text gets a leading space if the file asks for one and the text has none. It is cut at user-defined and control tokens, and each part
    /// is split into pieces. Characters without a piece become bytes, if the vocabulary has them, or the unknown token. transformers reads
    /// such a file in this way; llama.cpp also puts a space after special tokens.
    pub(crate) fn sentencepiece_json(&self, kind: SentencePiece) -> Result<Json> {
        let vocabulary = self.vocabulary()?;
        let scores: Vec<f32> = self.required("tokenizer.ggml.scores", "an array of numbers")?;
        if scores.len() != vocabulary.texts.len() {
            let (scores, tokens) = (scores.len(), vocabulary.texts.len());
            return Err(self.broken(format!("{scores} scores for {tokens} tokens")));
        }
        let has_bytes = vocabulary.types.contains(&BYTE);
        let unknown = self.token_id("unknown")?.map(|id| id as usize);
        let unknown = unknown.filter(|&id| vocabulary.types.get(id) == Some(&UNKNOWN));
        let unknown = unknown.or_else(|| vocabulary.types.iter().position(|&own| own == UNKNOWN));
        if unknown.is_none() && !has_bytes {
            let reason = "its vocabulary has neither an unknown token nor bytes";
            return Err(self.broken(format!("{reason}, and text may hold any character")));
        }
        let has_prefix = self.flag("add_space_prefix", true)?;
        let model = match kind {
            SentencePiece::Merged => json!({
                "type": "BPE",
                "dropout": null,
                "unk_token": unknown.map(|id| &vocabulary.texts[id]),
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": true,
                "byte_fallback": has_bytes,
                "ignore_merges": false,
                "vocab": vocabulary.ids().map_err(|reason| self.broken(reason))?,
                "merges": merges(&vocabulary, &scores),
            }),
            SentencePiece::Unigram => {
                let pieces = vocabulary.texts.iter().zip(&scores);
                let pieces: Vec<Json> = pieces.map(|(text, score)| json!([text, score])).collect();
                json!({
                    "type": "Unigram",
                    "unk_id": unknown,
                    "vocab": pieces,
                    "byte_fallback": has_bytes,
                })
            }
        };
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if has_prefix {
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": vocabulary.added_tokens(),
            "normalizer": self.normalizer()?,
            "pre_tokenizer": {
                "type": "Metaspace",
                "replacement": SPACE,
                "prepend_scheme": if has_prefix { "first" } else { "never" },
                "split": false,
            },
            "post_processor": self.post_processor(&vocabulary, kind.wants())?,
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": model,
        }))
    }

    /// The normalisation of a text, in SentencePiece's order; null if there is none.
    fn normalizer(&self) -> Result<Json> {
        let mut steps = Vec::new();
        let key = "tokenizer.ggml.precompiled_charsmap";
        let map: Option<Vec<i64>> = self.optional(key, "an array of bytes")?;
        if let Some(map) = map.filter(|map| !map.is_empty()) {
            let bytes: Vec<u8> = map.iter().map(|&byte| byte as u8).collect(); // −128 to 127 in some files
            let unreadable = || self.broken(format!("metadata {key} is no map of characters"));
            let step = Precompiled::from(&bytes).map_err(|_| unreadable())?;
            steps.push(serde_json::to_value(step).map_err(|_| unreadable())?);
        }
        if self.flag("remove_extra_whitespaces", false)? {
            for (pattern, content) in [(r"\A +| +\z", ""), (" {2,}", " ")] {
                let pattern = json!({ "Regex": pattern });
                steps.push(json!({ "type": "Replace", "pattern": pattern, "content": content }));
            }
        }
        Ok(match steps.is_empty() {
            true => Json::Null,
            false => json!({ "type": "Sequence", "normalizers": steps }),
        })
    }
}

/// Every pair of pieces whose concatenation is a piece, the best first: the pairs that SentencePiece merges. Only ordinary pieces are merged.
fn merges(vocabulary: &Vocabulary, scores: &[f32]) -> Vec<Json> {
    let pieces = vocabulary.texts.iter().zip(&vocabulary.types).enumerate();
    let pieces: HashMap<&str, usize> = pieces
        .filter(|(_, (_, own))| **own == NORMAL)
        .map(|(id, (text, _))| (&**text, id))
        .collect();
    let mut pairs: Vec<(f32, usize, &str, &str)> = Vec::new();
    for (&piece, &id) in &pieces {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if pieces.contains_key(left) && pieces.contains_key(right) {
                pairs.push((scores[id], id, left, right));
            }
        }
    }
    pairs.sort_unstable_by(|a, b| {
        b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(b.2.len().cmp(&a.2.len()))
    });
    pairs.into_iter().map(|(_, _, left, right)| json!([left, right])).collect()
}
