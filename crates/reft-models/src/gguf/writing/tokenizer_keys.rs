//! A GGUF file's metadata about a tokenizer, from a Hugging Face directory.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use serde_json::Value as Json;

use crate::gguf::fields::NAMED_TEMPLATE;
use crate::gguf::tokenizer::{NO_TOKENIZER, PRE_TOKENIZERS};
use crate::gguf::vocabulary::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED};
use crate::gguf::writing::file::{Keys, refuse};
use crate::text::chat_template::{DEFAULT, sources_in};
use crate::text::tokenizer_config::TokenizerConfig;
use crate::{Result, Tokenizer};

/// The lowest score, for a piece that no merge makes.
const NOT_MERGED: f32 = -1e6;

/// The keys of the tokenizer and the chat template of a model directory. Without `tokenizer.json` they say that there is no tokenizer.
///
/// # Errors
/// [`crate::Error::NoGgufForm`] with the part that has none; broken files.
pub(crate) fn tokenizer_keys(directory: &Path, vocab_size: i64) -> Result<Keys> {
    let text = |key: &str, text: &str| (key.to_owned(), Value::String(text.to_owned()));
    if !directory.join("tokenizer.json").is_file() {
        return Ok(vec![text("tokenizer.ggml.model", NO_TOKENIZER)]);
    }
    let tokenizer = Tokenizer::open(directory)?;
    let json = tokenizer.json()?;
    let model = &json["model"];
    if model["type"] != "BPE" {
        let kind = model["type"].as_str().unwrap_or("nothing");
        return Err(refuse(&format!("its tokenizer is of the type {kind}, expected BPE")));
    }
    let merges = merges(model)?;
    let mut keys = Keys::new();
    let is_sentencepiece = model["byte_fallback"] == true;
    let (texts, types) = vocabulary(&json, vocab_size, is_sentencepiece)?;
    if is_sentencepiece {
        keys.extend([text("tokenizer.ggml.model", "llama"), text("tokenizer.ggml.pre", "default")]);
        let scores = scores(&texts, &merges).into_iter().map(Value::F32).collect();
        keys.push(("tokenizer.ggml.scores".to_owned(), Value::Array(scores)));
        let has_prefix = Value::Bool(puts_a_space_first(&json));
        keys.push(("tokenizer.ggml.add_space_prefix".to_owned(), has_prefix));
    } else {
        let pre = pre_tokenizer(&json)?;
        keys.extend([text("tokenizer.ggml.model", "gpt2"), text("tokenizer.ggml.pre", pre)]);
        let merges = merges.iter().map(|[a, b]| Value::String(format!("{a} {b}"))).collect();
        keys.push(("tokenizer.ggml.merges".to_owned(), Value::Array(merges)));
    }
    let types = types.into_iter().map(|own| Value::I32(own as i32)).collect();
    keys.push(("tokenizer.ggml.token_type".to_owned(), Value::Array(types)));
    let unknown = model["unk_token"].as_str().and_then(|token| tokenizer.token_id(token));
    for (name, id) in [
        ("bos", tokenizer.bos_id()),
        ("eos", tokenizer.eos_id()),
        ("unknown", unknown),
        ("padding", tokenizer.pad_id()),
    ] {
        if let Some(id) = id {
            keys.push((format!("tokenizer.ggml.{name}_token_id"), Value::U32(id as u32)));
        }
    }
    let around = tokenizer.encode("a", true)?;
    let ends =
        [("bos", around.first(), tokenizer.bos_id()), ("eos", around.last(), tokenizer.eos_id())];
    for (name, found, own) in ends {
        let is_added = own.is_some() && found.copied() == own;
        keys.push((format!("tokenizer.ggml.add_{name}_token"), Value::Bool(is_added)));
    }
    for (name, source) in sources_in(directory, &TokenizerConfig::open(directory)?)? {
        let key = match name.as_str() {
            DEFAULT => "tokenizer.chat_template".to_owned(),
            other => format!("{NAMED_TEMPLATE}{other}"),
        };
        keys.push((key, Value::String(source)));
    }
    let texts = texts.into_iter().map(Value::String).collect();
    keys.push(("tokenizer.ggml.tokens".to_owned(), Value::Array(texts)));
    Ok(keys)
}

/// The merged pairs, in the order of merging.
fn merges(model: &Json) -> Result<Vec<[String; 2]>> {
    let pair = |merge: &Json| -> Option<[String; 2]> {
        match merge {
            Json::String(text) => text.split_once(' ').map(|(a, b)| [a.to_owned(), b.to_owned()]),
            Json::Array(pair) => match &pair[..] {
                [Json::String(a), Json::String(b)] => Some([a.clone(), b.clone()]),
                _ => None,
            },
            _ => None,
        }
    };
    let merges = model["merges"].as_array().map_or(&[][..], Vec::as_slice);
    let merges: Option<Vec<[String; 2]>> = merges.iter().map(pair).collect();
    merges.ok_or_else(|| refuse("a merge of its tokenizer is not a pair of tokens"))
}

/// Texts and types of the tokens, one for each row of the embeddings.
fn vocabulary(
    json: &Json,
    vocab_size: i64,
    is_sentencepiece: bool,
) -> Result<(Vec<String>, Vec<i64>)> {
    let no_form = || refuse("its tokenizer lists no tokens by their ids");
    let mut tokens: HashMap<i64, (String, i64)> = HashMap::new();
    let unknown = json["model"]["unk_token"].as_str();
    for (text, id) in json["model"]["vocab"].as_object().ok_or_else(no_form)? {
        let own = match text.as_str() {
            unk if Some(unk) == unknown => UNKNOWN,
            byte if is_sentencepiece && is_byte(byte) => BYTE,
            _ => NORMAL,
        };
        tokens.insert(id.as_i64().ok_or_else(no_form)?, (text.clone(), own));
    }
    for token in json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice) {
        let (Some(id), Some(text)) = (token["id"].as_i64(), token["content"].as_str()) else {
            return Err(no_form());
        };
        let own = match token["special"] == true {
            true if Some(text) == unknown => UNKNOWN,
            true => CONTROL,
            false => USER_DEFINED,
        };
        tokens.insert(id, (text.to_owned(), own));
    }
    if let Some(id) = tokens.keys().max().filter(|id| **id >= vocab_size) {
        return Err(refuse(&format!(
            "its tokenizer has a token {id}, and the embeddings have {vocab_size} rows"
        )));
    }
    let of_row = |id| tokens.remove(&id).unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED));
    Ok((0..vocab_size).map(of_row).unzip())
}

/// `<0x0A>`
fn is_byte(piece: &str) -> bool {
    let digits = piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// A score for each piece, so that pieces are merged in the order of the list: it follows the index of the first merge that makes the piece.
fn scores(texts: &[String], merges: &[[String; 2]]) -> Vec<f32> {
    let mut places: HashMap<String, usize> = HashMap::new();
    for (place, [left, right]) in merges.iter().enumerate() {
        places.entry(format!("{left}{right}")).or_insert(place);
    }
    let score = |text: &String| places.get(text).map_or(NOT_MERGED, |place| -(*place as f32));
    texts.iter().map(score).collect()
}

/// Whether a text gets a leading space.
fn puts_a_space_first(json: &Json) -> bool {
    let steps = |part: &str, list: &str| -> Vec<Json> {
        let own = &json[part];
        own[list].as_array().cloned().unwrap_or_else(|| vec![own.clone()])
    };
    let prepends = |step: &Json| match step["type"].as_str() {
        Some("Prepend") => true,
        Some("Metaspace") => step["prepend_scheme"] != "never",
        _ => false,
    };
    let steps = steps("normalizer", "normalizers").into_iter();
    let all: Vec<Json> = steps.chain(self::pre_steps(json)).collect();
    all.iter().any(prepends)
}

/// The steps that split a text.
fn pre_steps(json: &Json) -> Vec<Json> {
    let own = &json["pre_tokenizer"];
    own["pretokenizers"].as_array().cloned().unwrap_or_else(|| vec![own.clone()])
}

/// llama.cpp's name for how a byte-level BPE splits text.
fn pre_tokenizer(json: &Json) -> Result<&'static str> {
    let bare = |mut step: Json| {
        if let Some(step) = step.as_object_mut() {
            step.remove("trim_offsets"); // changes offsets, not tokens
        }
        step
    };
    let own: Vec<Json> = pre_steps(json).into_iter().map(bare).collect();
    let is_same = |steps: Json| {
        let steps = steps.as_array().cloned().unwrap_or_default();
        steps.into_iter().map(bare).collect::<Vec<_>>() == own
    };
    let found = PRE_TOKENIZERS.iter().find(|(_, steps)| is_same(steps()));
    found.map(|(name, _)| *name).ok_or_else(|| {
        let known: Vec<&str> = PRE_TOKENIZERS.iter().map(|(name, _)| *name).collect();
        refuse(&format!("its tokenizer splits text in none of these ways: {}", known.join(", ")))
    })
}
