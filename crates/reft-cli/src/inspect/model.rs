use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use reft_methods::{MERGED_ADAPTER, MERGED_BASE_MODEL};
use reft_models::{ChatOptions, Decoder, DecoderConfig, Weights, weights_facts};
use serde_json::{Value, json};

use crate::model::ModelText;
use crate::terminal::{Rows, bytes, grouped};

/// Describes a model.
///
/// # Errors
/// If the path holds no model, or a tensor is missing or misshapen.
pub fn describe(path: &Path) -> Result<(Rows, Value)> {
    let weights = Weights::open(path)?;
    let config = Decoder::check(DecoderConfig::open(path)?, &weights)?;
    let text = ModelText::open(path, &ChatOptions::default())?;
    let has_chat_template = text.chat_template.is_some();
    let size = weight_bytes(path)?;
    let (c, parameters) = (&config, config.describe().parameters());
    let (heads, kv_heads, d_h) = (c.num_attention_heads, c.num_key_value_heads, c.head_dim);
    let head = match (c.is_causal, c.tie_word_embeddings) {
        (false, _) => "no head is read",
        (true, true) => "head tied to the embeddings",
        (true, false) => "head of its own",
    };
    let unlike = c.differences();
    let vocabulary = text.tokenizer.as_ref().map(|tokenizer| tokenizer.vocab_size());
    let merged = merged(path);
    let dtypes = weights.dtypes().into_iter();
    let dtypes: Vec<String> = dtypes.map(|(dtype, n)| format!("{n} {dtype}")).collect(); // 211 Q4_1 + 61 F32
    let mut rows = vec![
        ("family", c.model_type.clone()),
        ("parameters", grouped(parameters)),
        ("layers", c.num_hidden_layers.to_string()),
        ("hidden size", c.hidden_size.to_string()),
        ("attention", format!("{heads} heads of {d_h}, {kv_heads} for keys and values")),
        ("MLP", c.intermediate_size.to_string()),
        ("unlike Llama", if unlike.is_empty() { "nothing".to_owned() } else { unlike.join("; ") }),
        ("vocabulary", format!("{}, {head}", grouped(c.vocab_size))),
        ("context", format!("{} tokens", grouped(c.max_position_embeddings))),
        ("weights", format!("{} tensors, {}", dtypes.join(" + "), bytes(size))),
        ("tokenizer", vocabulary.map_or("none".into(), |n| format!("{} tokens", grouped(n)))),
        ("loads", "yes: every tensor is there, in its shape".to_owned()),
        ("chat template", if has_chat_template { "yes" } else { "no" }.to_owned()),
    ];
    if let Some((adapter, base_model)) = &merged {
        rows.push(("merged", format!("{adapter} into {base_model}")));
    }
    let json = json!({
        "type": "model",
        "loads": true,
        "model_type": c.model_type,
        "parameters": parameters,
        "num_hidden_layers": c.num_hidden_layers,
        "hidden_size": c.hidden_size,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.intermediate_size,
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tie_word_embeddings,
        "is_causal": c.is_causal,
        "max_position_embeddings": c.max_position_embeddings,
        "tensors": weights.dtypes(),
        "tokenizer_size": vocabulary,
        "chat_template": has_chat_template,
        "unlike_llama": unlike,
        "merged": merged.map(|(adapter, base_model)| json!({"adapter": adapter, "base_model": base_model})),
        "bytes": size,
    });
    let rows = rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Ok((rows, json))
}

/// The adapter and the base model as recorded by `reft export --merge`, if it wrote this model.
fn merged(path: &Path) -> Option<(String, String)> {
    let mut metadata = weights_facts(path).ok()?;
    Some((metadata.remove(MERGED_ADAPTER)?, metadata.remove(MERGED_BASE_MODEL)?))
}

/// Size of the weight files in bytes.
fn weight_bytes(path: &Path) -> Result<u64> {
    let is_weights = |file: &Path| file.extension().is_some_and(|ending| ending == "safetensors");
    let sum = || -> std::io::Result<u64> {
        if path.is_file() {
            return Ok(fs::metadata(path)?.len());
        }
        let mut sum = 0;
        for entry in fs::read_dir(path)? {
            let file = entry?.path();
            sum += if is_weights(&file) { fs::metadata(&file)?.len() } else { 0 };
        }
        Ok(sum)
    };
    sum().with_context(|| format!("cannot read {}", path.display()))
}
