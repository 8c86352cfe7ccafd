//! A GGUF file of a model, written and read back.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use tch::{Kind, Tensor};

use crate::gguf::architecture::Architecture;
use crate::gguf::writing::kind::GgufKind;
use crate::gguf::writing::model_keys::ModelKeys;
use crate::gguf::writing::tokenizer_keys::tokenizer_keys;
use crate::{
    Decoder, DecoderConfig, Error, Model, ModelDescription, Result, RopeScaling, Tokenizer,
    atomic_write, io_error,
};

/// Metadata in the order that it is written in.
pub(crate) type Keys = Vec<(String, Value)>;

/// Texts for which the original and the exported tokenizer must give the same tokens.
const PROBES: [&str; 8] = [
    "Hello, world! It's 2024, isn't it?",
    "two  spaces, a tab\tand\nlines\n\n  of text  ",
    "1234567890 3.14 12,345 x1y22",
    "Größe, naïve, 東京, Привет, 🚀🙂 שלום",
    "def f(x):\n    return x**2 # don't",
    "CamelCase snake_case http://example.org/a?b=c&d=%20",
    "WE'LL we'Ll I'M \u{201c}quoted\u{201d} \u{2014} …",
    "a",
];

/// Writes a model as one GGUF file: its present weights, and the tokenizer and the chat template of the directory that it was opened from.
/// Then reads it back: a file with another configuration, or with a tokenizer that splits text differently, is not kept.
///
/// Returns notes for users of the file.
///
/// # Errors
/// [`Error::NoGgufForm`] with the part that the format or llama.cpp has no place for; [`Error::OutputExists`]; files that cannot be read or written.
pub fn export_gguf(
    model: &Decoder,
    directory: &Path,
    output: &Path,
    kind: GgufKind,
) -> Result<Vec<String>> {
    if output.exists() {
        return Err(Error::OutputExists(output.to_owned()));
    }
    let config = model.config();
    let family = &config.model_type;
    let architecture = Architecture::of_family(family).ok_or_else(|| {
        let known = Architecture::written_families().join(", ");
        refuse(&format!("models of the type {family} are not written, only {known}"))
    })?;
    let ModelKeys { keys, factors, meant } = ModelKeys::of(config, &architecture)?;
    let text = |key: &str, value: &str| (key.to_owned(), Value::String(value.to_owned()));
    let mut all = vec![
        text("general.architecture", architecture.name),
        text("general.type", "model"),
        ("general.file_type".to_owned(), Value::U32(kind.file_type())),
        ("general.quantization_version".to_owned(), Value::U32(2)),
    ];
    let name = directory.file_name().map(|name| name.to_string_lossy().into_owned());
    all.extend(name.map(|name| text("general.name", &name)));
    all.extend(keys);
    all.extend(tokenizer_keys(directory, config.vocab_size)?);
    let mut tensors = Vec::new();
    for (name, weight) in model.weights() {
        let own = architecture.own_name(&name).ok_or_else(|| {
            refuse(&format!(
                "the tensor {name} has no name in the architecture {}",
                architecture.name
            ))
        })?;
        let tensor = in_file(&name, &weight.dense(), config, &architecture)?;
        let dtype = kind.of_tensor(&tensor.size());
        tensors.push((own, quantised(&tensor, dtype)?));
    }
    for (name, factors) in &factors {
        tensors.push(((*name).to_owned(), quantised(factors, GgmlDType::F32)?));
    }
    atomic_write(output, |temporary| -> Result<()> {
        let file = File::create(temporary).map_err(io_error("write", output))?;
        let keys: Vec<(&str, &Value)> = all.iter().map(|(key, value)| (&**key, value)).collect();
        let tensors: Vec<(&str, &QTensor)> =
            tensors.iter().map(|(name, tensor)| (&**name, tensor)).collect();
        gguf_file::write(&mut BufWriter::new(file), &keys, &tensors)
            .map_err(|failed| io_error("write", output)(std::io::Error::other(failed)))?;
        let found = DecoderConfig::open(temporary).map_err(|failed| match failed {
            Error::Format { reason, .. } => refuse(&format!("of the file is said: {reason}")),
            other => other,
        })?;
        check_model(&meant, &found)?;
        check_tokenizer(directory, temporary)
    })?;
    let mut notes = Vec::new();
    if meant.max_position_embeddings != config.max_position_embeddings {
        notes.push(format!(
            "llama.cpp has no windows in models of the type {family}: the file's context is {} tokens instead of {}, within which they change nothing",
            meant.max_position_embeddings, config.max_position_embeddings
        ));
    }
    if let Some(original) = meant.keys_change_at {
        notes.push(format!(
            "llama.cpp takes the factors for long texts whenever it is given a context of more than {original} tokens, whatever a text's length"
        ));
    }
    if !directory.join("tokenizer.json").is_file() {
        notes.push("the model has no tokenizer.json, so the file has no tokenizer".to_owned());
    }
    Ok(notes)
}

/// The error for a model that cannot be written.
pub(crate) fn refuse(reason: &str) -> Error {
    Error::NoGgufForm { reason: reason.to_owned() }
}

/// A tensor in llama.cpp's convention: rotary halves interleaved, and `1 + w` stored for norms that multiply with it.
fn in_file(
    name: &str,
    tensor: &Tensor,
    config: &DecoderConfig,
    architecture: &Architecture,
) -> Result<Tensor> {
    let tensor = tensor.detach();
    let heads = match name.rsplit('.').nth(1) {
        Some("q_proj") if architecture.interleaves => config.num_attention_heads,
        Some("k_proj") if architecture.interleaves => config.num_key_value_heads,
        _ if architecture.adds_one && name.ends_with("norm.weight") => {
            return Ok(tensor.f_to_kind(Kind::Float)?.f_add_scalar(1.0)?);
        }
        _ => return Ok(tensor),
    };
    let shape = tensor.size();
    let halves = [&[heads, 2, shape[0] / heads / 2], &shape[1..]].concat(); // [n_h, 2, d_h / 2, ..]
    Ok(tensor.f_reshape(halves)?.f_transpose(1, 2)?.f_reshape(&shape)?)
}

/// A tensor in the form of the file.
pub(crate) fn quantised(tensor: &Tensor, dtype: GgmlDType) -> Result<QTensor> {
    let cpu = candle_core::Device::Cpu;
    let shape: Vec<usize> = tensor.size().iter().map(|size| *size as usize).collect();
    let flat = tensor.f_to_kind(Kind::Float)?.f_to_device(tch::Device::Cpu)?.f_flatten(0, -1)?;
    let numbers: Vec<f32> = Vec::try_from(flat)?;
    candle_core::Tensor::from_vec(numbers, shape, &cpu)
        .and_then(|tensor| QTensor::quantize(&tensor, dtype))
        .map_err(|failed| refuse(&format!("a tensor cannot be held as {dtype:?}: {failed}")))
}

/// Checks that the file is read as the same model.
fn check_model(meant: &DecoderConfig, found: &DecoderConfig) -> Result<()> {
    // ignore the family among those of one architecture, and fields that follow from others
    let bare = |config: &DecoderConfig| {
        let mut config = config.clone();
        config.model =
            ModelDescription { model_type: String::new(), tensors: Vec::new(), ..config.model };
        round_numbers(&mut config);
        config
    };
    let (meant, found) = (bare(meant), bare(found));
    if meant == found {
        return Ok(());
    }
    let parts = [
        ("sizes, context or windows", meant.model == found.model),
        ("names of modules", meant.names == found.names),
        ("embeddings", meant.embeddings == found.embeddings),
        ("norms", meant.norm == found.norm),
        ("attention or RoPE", meant.attention == found.attention),
        ("MLP", meant.mlp == found.mlp),
        ("multipliers", meant.multipliers == found.multipliers),
        ("head", meant.tie_word_embeddings == found.tie_word_embeddings),
    ];
    let others: Vec<&str> = parts.iter().filter(|(_, same)| !same).map(|(part, _)| *part).collect();
    Err(refuse(&format!("the file would say something else of its {}", others.join(" and its "))))
}

/// Rounds the numbers of a configuration as the file's f32 metadata do.
fn round_numbers(config: &mut DecoderConfig) {
    let DecoderConfig { norm, attention, multipliers, .. } = config;
    let mut numbers = vec![
        &mut norm.eps,
        &mut multipliers.embedding,
        &mut multipliers.input,
        &mut multipliers.residual,
        &mut multipliers.logit_divisor,
    ];
    let optional = [&mut attention.scale, &mut attention.soft_cap, &mut multipliers.logit_soft_cap];
    numbers.extend(optional.into_iter().flatten());
    for rope in &mut attention.ropes {
        numbers.push(&mut rope.theta);
        match &mut rope.scaling {
            RopeScaling::Linear { factor } => numbers.push(factor),
            RopeScaling::Yarn { factor, attention_factor, beta_fast, beta_slow, .. } => {
                numbers.extend([factor, attention_factor, beta_fast, beta_slow]);
            }
            RopeScaling::LongRope { short_factor, long_factor, attention_factor, .. } => {
                numbers.extend(short_factor.iter_mut().chain(long_factor));
                numbers.push(attention_factor);
            }
            RopeScaling::None | RopeScaling::Llama3 { .. } | RopeScaling::Dynamic { .. } => {}
        }
    }
    for number in numbers {
        *number = f64::from(*number as f32);
    }
}

/// Checks that the file's tokenizer splits text as the directory's does.
fn check_tokenizer(directory: &Path, file: &Path) -> Result<()> {
    if !directory.join("tokenizer.json").is_file() {
        return Ok(());
    }
    let (own, found) = (Tokenizer::open(directory)?, Tokenizer::open(file)?);
    for text in PROBES {
        let (expected, found) = (own.encode(text, true)?, found.encode(text, true)?);
        if expected != found {
            return Err(refuse(&format!(
                "its tokenizer makes {expected:?} of {text:?}, and the file's would make {found:?}"
            )));
        }
    }
    Ok(())
}
