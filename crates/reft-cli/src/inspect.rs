//! `reft inspect`: what an adapter or a model is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use reft_bench::{AdapterKind, FullAdapter, MERGED_ADAPTER, MERGED_BASE_MODEL};
use reft_models::{DecoderConfig, Weights, load_safetensors_metadata, resolve_model};
use serde_json::{Value, json};

use crate::inspect_adapter;
use crate::model::{open_chat_template, open_tokenizer};
use crate::output::{self, bytes, grouped};

/// Show what an adapter or a model is: method, sites, parameters, sizes
///
/// Files are checked as when they are used: a tensor that is missing or misshapen is an error.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  reft inspect runs/emoji
  reft inspect runs/lora --model models/SmolLM2-135M-Instruct
  reft inspect models/SmolLM2-135M-Instruct --json")]
pub struct InspectArgs {
    /// Adapter directory, model directory, GGUF file, or hub name
    #[arg(value_name = "DIR|FILE")]
    path: PathBuf,
    /// Base model of the adapter, for its trainable share [default: the one that the adapter names, if it is there]
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// What is found: for people, and for scripts.
pub struct Report {
    /// Names beside values.
    pub rows: Vec<(&'static str, String)>,
    /// One document.
    pub json: Value,
}

/// Runs the command.
pub fn run(args: &InspectArgs) -> Result<ExitCode> {
    let path = &args.path;
    let is_model = |path: &Path| path.is_file() || path.join("config.json").is_file();
    // a model's directory holds what a fully fine-tuned adapter's does, and its configuration
    let is_adapter = AdapterKind::of(path).is_ok_and(|kind| kind != AdapterKind::Full);
    let report = if !is_adapter && !path.exists() {
        model(&resolve_model(&path.to_string_lossy())?)
    } else if !is_adapter && is_model(path) && !is_saved_by_pyreft(path) {
        model(path)
    } else {
        inspect_adapter::report(path, args.model.as_deref())
    };
    let report = report.with_context(|| format!("cannot inspect {}", path.display()))?;
    if args.json {
        output::json(&report.json)?;
    } else {
        output::table(&report.rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// pyreft's directories hold a `config.json` too.
fn is_saved_by_pyreft(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("intkey_"))
    })
}

fn model(path: &Path) -> Result<Report> {
    let config = DecoderConfig::open(path)?;
    let weights = Weights::open(path)?;
    let tokenizer = open_tokenizer(path)?;
    let has_chat_template = open_chat_template(path)?.is_some();
    let size = weight_bytes(path)?;
    let c = &config;
    let head = if c.tie_word_embeddings { "tied to the embeddings" } else { "of its own" };
    let vocabulary = tokenizer.as_ref().map(|tokenizer| tokenizer.vocab_size());
    let merged = merged(path);
    let mut rows = vec![
        ("family", c.model_type.clone()),
        ("parameters", grouped(c.parameters())),
        ("layers", c.num_hidden_layers.to_string()),
        ("hidden size", c.hidden_size.to_string()),
        (
            "attention",
            format!(
                "{} heads of {}, {} for keys and values",
                c.num_attention_heads, c.head_dim, c.num_key_value_heads
            ),
        ),
        ("MLP", c.intermediate_size.to_string()),
        ("vocabulary", format!("{}, head {head}", grouped(c.vocab_size))),
        ("context", format!("{} tokens", grouped(c.max_position_embeddings))),
        ("weights", format!("{} tensors, {}", listed(&weights.dtypes()), bytes(size))),
        ("tokenizer", vocabulary.map_or("none".into(), |n| format!("{} tokens", grouped(n)))),
        ("chat template", if has_chat_template { "yes" } else { "no" }.to_owned()),
    ];
    if let Some((adapter, base_model)) = &merged {
        rows.push(("merged", format!("{adapter} into {base_model}")));
    }
    let json = json!({
        "type": "model",
        "model_type": c.model_type,
        "parameters": c.parameters(),
        "num_hidden_layers": c.num_hidden_layers,
        "hidden_size": c.hidden_size,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.intermediate_size,
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tie_word_embeddings,
        "max_position_embeddings": c.max_position_embeddings,
        "tensors": weights.dtypes(),
        "tokenizer_size": vocabulary,
        "chat_template": has_chat_template,
        "merged": merged.map(|(adapter, base_model)| json!({"adapter": adapter, "base_model": base_model})),
        "bytes": size,
    });
    Ok(Report { rows, json })
}

/// Which adapter was merged into a model, and what the model was, if `reft export` wrote it.
fn merged(path: &Path) -> Option<(String, String)> {
    let mut metadata = load_safetensors_metadata(&path.join(FullAdapter::FILE_NAME)).ok()?;
    Some((metadata.remove(MERGED_ADAPTER)?, metadata.remove(MERGED_BASE_MODEL)?))
}

/// `272 F32`, or `211 Q4_1 + 61 F32`.
fn listed(dtypes: &BTreeMap<String, usize>) -> String {
    let parts: Vec<String> = dtypes.iter().map(|(dtype, n)| format!("{n} {dtype}")).collect();
    parts.join(" + ")
}

/// Size of the weight files in bytes.
fn weight_bytes(path: &Path) -> Result<u64> {
    let size = |path: &Path| -> Result<u64> {
        Ok(fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len())
    };
    if path.is_file() {
        return size(path);
    }
    let mut sum = 0;
    for entry in fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        let file = entry.with_context(|| format!("cannot read {}", path.display()))?.path();
        if file.extension().is_some_and(|extension| extension == "safetensors") {
            sum += size(&file)?;
        }
    }
    Ok(sum)
}
