//! `reft inspect`: what an adapter or a model is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use reft_models::{BaseModel, DecoderConfig, ReftAdapter, ReftConfig, Weights, resolve_model};
use serde_json::{Value, json};

use crate::layers::Layers;
use crate::model::{check_adapter_directory, open_chat_template, open_tokenizer};
use crate::output::{self, bytes, grouped, percent};
use crate::train_directory::adapter_bytes;

/// Show what an adapter or a model is: method, sites, parameters, sizes
///
/// Files are checked as when they are used: a tensor that is missing or misshapen is an error.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  reft inspect runs/emoji
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
struct Report {
    rows: Vec<(&'static str, String)>,
    json: Value,
}

/// Runs the command.
pub fn run(args: &InspectArgs) -> Result<ExitCode> {
    let path = &args.path;
    let is_model = |path: &Path| path.is_file() || path.join("config.json").is_file();
    let is_adapter = path.join(ReftConfig::FILE_NAME).is_file();
    let report = if !is_adapter && !path.exists() {
        model(&resolve_model(&path.to_string_lossy())?)
    } else if !is_adapter && is_model(path) && !is_saved_by_pyreft(path) {
        model(path)
    } else {
        adapter(path, args.model.as_deref())
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

fn adapter(directory: &Path, model: Option<&str>) -> Result<Report> {
    check_adapter_directory(directory)?;
    let adapter = ReftAdapter::load_alone(directory)?;
    let config = adapter.config();
    let base = base_config(&config.base_model, model)?;
    if let Some(base) = &base {
        config.check_model(base)?;
    }
    let n = config.sites().len() as i64;
    let parameters = n * config.intervention().trainable_parameters(config.base_model.hidden_size);
    let share = base.as_ref().map(|base| percent(parameters, base.parameters()));
    let error = adapter.interventions().orthonormality_error();
    let size = adapter_bytes(directory)?;

    let tied = if config.share_weights { "tied" } else { "untied" };
    let layers = Layers::Some(config.layers.clone());
    let act_fn = config.act_fn;
    let mut rows = vec![
        ("method", format!("{} (act_fn {act_fn}, dropout {})", config.method, config.dropout)),
        (
            "rank",
            format!(
                "{} of hidden size {}",
                config.low_rank_dimension, config.base_model.hidden_size
            ),
        ),
        ("layers", format!("{layers} ({})", config.component)),
        ("positions", format!("{}, {tied}, rule {}", config.positions, config.position_rule)),
        ("interventions", n.to_string()),
        ("parameters", grouped(parameters)),
    ];
    if let (Some(base), Some(share)) = (&base, share) {
        rows.push(("trainable", format!("{share} of {}", grouped(base.parameters()))));
    }
    if let Some(error) = error {
        rows.push(("orthonormality", format!("largest entry of |RᵀR − I| is {error:.1e}")));
    }
    rows.push(("base model", describe(&config.base_model)));
    rows.push(("size", bytes(size)));
    let json = json!({
        "type": "adapter",
        "config": config,
        "interventions": n,
        "parameters": parameters,
        "base_parameters": base.as_ref().map(DecoderConfig::parameters),
        "trainable_share": base.map(|base| parameters as f64 / base.parameters() as f64),
        "orthonormality_error": error,
        "bytes": size,
    });
    Ok(Report { rows, json })
}

/// The base model's configuration, if it is asked for or at hand.
fn base_config(base: &BaseModel, asked: Option<&str>) -> Result<Option<DecoderConfig>> {
    if let Some(model) = asked {
        return Ok(Some(DecoderConfig::open(&resolve_model(model)?)?));
    }
    let at_hand = base.name.as_deref().map(Path::new).filter(|path| path.exists());
    let config = at_hand.and_then(|path| DecoderConfig::open(path).ok());
    Ok(config.filter(|config| base.check(config).is_ok())) // else another model stands there by now
}

fn describe(base: &BaseModel) -> String {
    let name = base.name.as_deref().unwrap_or("not named");
    let family = base.model_type.as_deref().unwrap_or("unknown family");
    let layers = base.num_hidden_layers.map_or(String::new(), |n| format!(", {n} layers"));
    format!("{name} ({family}, hidden size {}{layers})", base.hidden_size)
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
    let rows = vec![
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
        "bytes": size,
    });
    Ok(Report { rows, json })
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
