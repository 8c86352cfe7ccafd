//! GGUF files seen as Hugging Face checkpoints.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use proptest::prelude::*;
use reft_models::{
    ChatTemplate, Decoder, DecoderConfig, Error, Gguf, Message, Model, Tokenizer, WeightStorage,
    Weights, convert_gguf,
};
use serde_json::json;
use tch::{Device, Kind, Tensor};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const HIDDEN: usize = 256; // one K-quant block
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = HIDDEN / HEADS;
const MLP: usize = 512;
const VOCAB: usize = 12;

/// Tensors as a Hugging Face checkpoint has them: name, rows, columns (0: a vector).
const TENSORS: [(&str, &str, usize, usize); 12] = [
    ("token_embd.weight", "model.embed_tokens.weight", VOCAB, HIDDEN),
    ("output_norm.weight", "model.norm.weight", HIDDEN, 0),
    ("output.weight", "lm_head.weight", VOCAB, HIDDEN),
    ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight", HIDDEN, 0),
    ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight", HIDDEN, 0),
    ("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight", HIDDEN, HIDDEN),
    ("blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj.weight", KV_HEADS * HEAD_DIM, HIDDEN),
    ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight", KV_HEADS * HEAD_DIM, HIDDEN),
    ("blk.0.attn_output.weight", "model.layers.0.self_attn.o_proj.weight", HIDDEN, HIDDEN),
    ("blk.0.ffn_gate.weight", "model.layers.0.mlp.gate_proj.weight", MLP, HIDDEN),
    ("blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight", MLP, HIDDEN),
    ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight", HIDDEN, MLP),
];

/// Values in [−1, 1] that differ everywhere.
fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + 13) % 10007) as f32 / 5003.5 - 1.0).collect()
}

/// The change of `convert_hf_to_gguf` to the rows of q and k: half `s`, row `i` of a head goes to row `2 i + s`.
pub fn interleave(values: &[f32], n_heads: usize, columns: usize) -> Vec<f32> {
    let head_dim = values.len() / columns / n_heads;
    let mut stored = vec![0.0; values.len()];
    for head in 0..n_heads {
        for half in 0..2 {
            for i in 0..head_dim / 2 {
                let from = (head * head_dim + half * head_dim / 2 + i) * columns;
                let to = (head * head_dim + 2 * i + half) * columns;
                stored[to..to + columns].copy_from_slice(&values[from..from + columns]);
            }
        }
    }
    stored
}

/// A file to be written: metadata and tensors in llama.cpp's terms.
pub struct Draft {
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<(String, QTensor)>,
}

pub fn quantised(
    values: &[f32],
    shape: &[usize],
    dtype: GgmlDType,
) -> candle_core::Result<QTensor> {
    let tensor = candle_core::Tensor::from_slice(values, shape, &candle_core::Device::Cpu)?;
    QTensor::quantize(&tensor, dtype)
}

fn strings(texts: &[&str]) -> Value {
    Value::Array(texts.iter().map(|&text| Value::String(text.to_owned())).collect())
}

/// A one-layer model with a twelve-token vocabulary.
fn draft(architecture: &str, dtype: GgmlDType) -> candle_core::Result<Draft> {
    let mut metadata =
        vec![("general.architecture".to_owned(), Value::String(architecture.to_owned()))];
    let sizes = [
        ("block_count", 1),
        ("context_length", 128),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", MLP),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
    ];
    for (key, size) in sizes {
        metadata.push((format!("{architecture}.{key}"), Value::U32(size as u32)));
    }
    metadata.push((format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::F32(1e-6)));
    metadata.push((format!("{architecture}.rope.freq_base"), Value::F32(500000.0)));
    let tokens = ["<bos>", "<eos>", "<eot>", "a", "b", "c", "Ġ", "1", "2", "ab", "Ġab", "<tool>"];
    let types = [3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 4].map(Value::I32);
    for (key, value) in [
        ("model", Value::String("gpt2".to_owned())),
        ("pre", Value::String("smollm".to_owned())),
        ("tokens", strings(&tokens)),
        ("token_type", Value::Array(types.to_vec())),
        ("merges", strings(&["a b", "Ġ ab"])),
        ("bos_token_id", Value::U32(0)),
        ("eos_token_id", Value::U32(1)),
        ("eot_token_id", Value::U32(2)),
    ] {
        metadata.push((format!("tokenizer.ggml.{key}"), value));
    }
    let template =
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
    metadata.push(("tokenizer.chat_template".to_owned(), Value::String(template.to_owned())));
    let mut tensors = Vec::new();
    for (name, _, rows, columns) in TENSORS {
        let values = values(rows * columns.max(1));
        let tensor = match (name, columns) {
            (_, 0) => quantised(&values, &[rows], GgmlDType::F32)?,
            ("blk.0.attn_q.weight", _) if architecture == "llama" => {
                quantised(&interleave(&values, HEADS, columns), &[rows, columns], dtype)?
            }
            ("blk.0.attn_k.weight", _) if architecture == "llama" => {
                quantised(&interleave(&values, KV_HEADS, columns), &[rows, columns], dtype)?
            }
            _ => quantised(&values, &[rows, columns], dtype)?,
        };
        tensors.push((name.to_owned(), tensor));
    }
    Ok(Draft { metadata, tensors })
}

impl Draft {
    fn set(mut self, key: &str, value: Value) -> Self {
        self.metadata.retain(|(other, _)| other != key);
        self.metadata.push((key.to_owned(), value));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.metadata.retain(|(key, _)| key != name);
        self.tensors.retain(|(tensor, _)| tensor != name);
        self
    }

    fn bytes(&self) -> candle_core::Result<Vec<u8>> {
        let metadata: Vec<(&str, &Value)> =
            self.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let tensors: Vec<(&str, &QTensor)> =
            self.tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let mut bytes = Cursor::new(Vec::new());
        gguf_file::write(&mut bytes, &metadata, &tensors)?;
        Ok(bytes.into_inner())
    }

    pub fn write(&self, directory: &Path) -> Result<PathBuf, Box<dyn std::error::Error>> {
        let path = directory.join("model.gguf");
        fs::write(&path, self.bytes()?)?;
        Ok(path)
    }
}

fn reason<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Format { reason, .. }) => reason,
        other => format!("not refused: {other:?}"),
    }
}

#[test]
fn tensors_have_hugging_face_names_and_row_order() -> Outcome {
    for architecture in ["llama", "qwen2", "qwen3"] {
        let directory = tempfile::tempdir()?;
        let weights =
            Weights::open(&draft(architecture, GgmlDType::F32)?.write(directory.path())?)?;
        assert_eq!(weights.names().count(), TENSORS.len());
        for (_, name, rows, columns) in TENSORS {
            let expected = Tensor::from_slice(&values(rows * columns.max(1)));
            let shape =
                if columns == 0 { vec![rows as i64] } else { vec![rows as i64, columns as i64] };
            assert_eq!(weights.shape(name), Some(shape.as_slice()));
            let found = weights.load(name, Kind::Float, Device::Cpu)?;
            assert_eq!(found, expected.reshape(&shape), "{architecture} {name}");
        }
    }
    Ok(())
}

/// The largest error is half a step of the type's grid for a block of values in [−1, 1] (K-quants also round their scales).
#[test]
fn every_type_is_dequantised_to_within_its_grid() -> Outcome {
    let types = [
        (GgmlDType::F16, 5e-4),
        (GgmlDType::BF16, 4e-3),
        (GgmlDType::Q8_0, 1.0 / 127.0),
        (GgmlDType::Q6K, 0.05),
        (GgmlDType::Q5_0, 1.0 / 15.0),
        (GgmlDType::Q5_1, 1.0 / 15.0),
        (GgmlDType::Q5K, 0.1),
        (GgmlDType::Q4_0, 1.0 / 7.0),
        (GgmlDType::Q4_1, 1.0 / 7.0),
        (GgmlDType::Q4K, 0.2),
        (GgmlDType::Q3K, 0.4),
        (GgmlDType::Q2K, 0.8),
    ];
    for (dtype, tolerance) in types {
        let directory = tempfile::tempdir()?;
        let weights = Weights::open(&draft("llama", dtype)?.write(directory.path())?)?;
        for (_, name, rows, columns) in TENSORS {
            let expected = Tensor::from_slice(&values(rows * columns.max(1)));
            let found = weights.load(name, Kind::Float, Device::Cpu)?.flatten(0, -1);
            let error = f64::try_from((&found - &expected).abs().max())?;
            assert!(error <= tolerance, "{dtype:?} {name}: off by {error}, allowed {tolerance}");
            // The mean error of a correct reading is far below the values' standard deviation of 0.58; with a wrong order of blocks it is not.
            let mean = f64::try_from((&found - &expected).abs().mean(Kind::Float))?;
            assert!(mean <= tolerance / 2.0, "{dtype:?} {name}: off by {mean} in the mean");
        }
    }
    Ok(())
}

/// candle and this crate read the same bytes: the results differ at most by f32 rounding.
#[test]
fn blocks_that_stay_as_stored_stand_for_the_numbers_that_dequantising_gives() -> Outcome {
    let kept = [
        (GgmlDType::Q8_0, Some(34.0 / 32.0)),
        (GgmlDType::Q4_0, Some(18.0 / 32.0)),
        (GgmlDType::Q4_1, Some(20.0 / 32.0)),
        (GgmlDType::Q4K, Some(148.0 / 256.0)), // 6-bit scales take a byte each
        (GgmlDType::Q6K, Some(274.0 / 256.0)), // 6-bit numbers take a byte each
        (GgmlDType::Q5_0, Some(22.0 / 32.0)),
        (GgmlDType::Q5_1, Some(24.0 / 32.0)),
        (GgmlDType::Q5K, None),
        (GgmlDType::F16, None),
    ];
    for (dtype, bytes_per_number) in kept {
        let directory = tempfile::tempdir()?;
        let path = draft("llama", dtype)?.write(directory.path())?;
        let dense = Weights::open(&path)?;
        let weights = Weights::open(&path)?.held_as(WeightStorage::AsStored);
        let config = DecoderConfig::open(&path)?;
        let decoder = Decoder::from_weights(config, &weights, Kind::Float, Device::Cpu)?;
        assert_eq!(decoder.is_quantised(), bytes_per_number.is_some(), "{dtype:?}");
        for (name, weight) in decoder.weights() {
            let expected = dense.load(&name, Kind::Float, Device::Cpu)?;
            assert_eq!(weight.size(), expected.size(), "{dtype:?} {name}");
            let difference = f64::try_from((weight.dense() - &expected).abs().max())?;
            assert!(difference < 3e-7, "{dtype:?} {name}: off by {difference}"); // numbers up to 1
            if let (Some(each), 2) = (bytes_per_number, expected.dim()) {
                assert_eq!(
                    weight.bytes() as f64,
                    expected.numel() as f64 * each,
                    "{dtype:?} {name}"
                );
                let ids = Tensor::from_slice(&[3i64, 0, 11]);
                let rows = expected.index_select(0, &ids);
                let difference = f64::try_from((weight.rows_at(&ids) - rows).abs().max())?;
                assert!(difference < 3e-7, "{dtype:?} {name}: rows are off by {difference}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_config_is_that_of_a_hugging_face_directory() -> Outcome {
    let directory = tempfile::tempdir()?;
    let gguf = Gguf::open(
        &draft("llama", GgmlDType::F32)?.without("output.weight").write(directory.path())?,
    )?;
    let expected = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "rope_scaling": null,
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": true,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": null,
        "torch_dtype": "float32",
    });
    assert_eq!(gguf.config()?, expected);
    let ends = json!({ "bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": null });
    assert_eq!(gguf.generation_config()?, ends);
    for (architecture, model_type) in [("qwen2", "qwen2"), ("qwen3", "qwen3")] {
        let gguf = Gguf::open(&draft(architecture, GgmlDType::F32)?.write(directory.path())?)?;
        assert_eq!(gguf.config()?["model_type"], model_type);
        assert_eq!(gguf.config()?["tie_word_embeddings"], false);
    }
    Ok(())
}

/// transformers' `_compute_llama3_parameters` with factor 8, low 1, high 4, original length 8192.
fn llama3_factors() -> Vec<f32> {
    let factor = |i: usize| {
        let wavelength = std::f64::consts::TAU * 500000f64.powf(2.0 * i as f64 / HEAD_DIM as f64);
        if wavelength < 8192.0 / 4.0 {
            1.0
        } else if wavelength > 8192.0 {
            8.0
        } else {
            let smooth = (8192.0 / wavelength - 1.0) / 3.0;
            1.0 / ((1.0 - smooth) / 8.0 + smooth)
        }
    };
    (0..HEAD_DIM / 2).map(|i| factor(i) as f32).collect()
}

#[test]
fn rope_scaling_is_read_or_refused() -> Outcome {
    let directory = tempfile::tempdir()?;
    let mut llama3 = draft("llama", GgmlDType::F32)?;
    let mut factors = llama3_factors();
    assert!(
        factors.iter().any(|&f| f > 1.0 && f < 8.0),
        "the test has no power between the limits"
    );
    llama3.tensors.push((
        "rope_freqs.weight".to_owned(),
        quantised(&factors, &[HEAD_DIM / 2], GgmlDType::F32)?,
    ));
    let gguf = Gguf::open(&llama3.write(directory.path())?)?;
    let expected = json!({
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    assert_eq!(gguf.config()?["rope_scaling"], expected);
    assert!(!gguf.shapes().any(|(name, _)| name.contains("rope")), "it is no weight of the model");
    factors[20] *= 1.01;
    llama3.tensors.pop();
    llama3.tensors.push((
        "rope_freqs.weight".to_owned(),
        quantised(&factors, &[HEAD_DIM / 2], GgmlDType::F32)?,
    ));
    let gguf = Gguf::open(&llama3.write(directory.path())?)?;
    assert!(reason(gguf.config()).contains("not those of llama3"), "{}", reason(gguf.config()));

    let scaled = |kind: &str| -> candle_core::Result<Draft> {
        Ok(draft("llama", GgmlDType::F32)?
            .set("llama.rope.scaling.type", Value::String(kind.to_owned()))
            .set("llama.rope.scaling.factor", Value::F32(2.5)))
    };
    let gguf = Gguf::open(&scaled("linear")?.write(directory.path())?)?;
    assert_eq!(gguf.config()?["rope_scaling"], json!({ "rope_type": "linear", "factor": 2.5 }));
    let gguf = Gguf::open(&scaled("yarn")?.write(directory.path())?)?;
    assert!(reason(gguf.config()).contains("yarn"));
    Ok(())
}

/// llama.cpp takes a factor without a type for linear scaling, and a factor of 0 for none.
#[test]
fn a_rope_factor_without_a_type_is_linear() -> Outcome {
    let directory = tempfile::tempdir()?;
    let scaling = |keys: &[(&str, Value)]| -> Result<_, Box<dyn std::error::Error>> {
        let mut draft = draft("llama", GgmlDType::F32)?;
        for (key, value) in keys {
            draft = draft.set(&format!("llama.rope.{key}"), value.clone());
        }
        Ok(Gguf::open(&draft.write(directory.path())?)?.config().map(|c| c["rope_scaling"].clone()))
    };
    let text = |text: &str| Value::String(text.to_owned());
    let linear = |factor: f64| json!({ "rope_type": "linear", "factor": factor });
    let (factor, old) = (("scaling.factor", Value::F32(2.5)), ("scale_linear", Value::F32(4.0)));
    assert_eq!(scaling(std::slice::from_ref(&factor))??, linear(2.5));
    assert_eq!(scaling(std::slice::from_ref(&old))??, linear(4.0));
    assert_eq!(scaling(&[old.clone(), factor.clone()])??, linear(2.5));
    assert_eq!(scaling(&[old, ("scaling.type", text("linear"))])??, linear(4.0));
    assert_eq!(scaling(&[factor, ("scaling.type", text("none"))])??, json!(null));
    assert_eq!(scaling(&[("scaling.factor", Value::F32(0.0))])??, json!(null));
    let alone = reason(scaling(&[("scaling.type", text("linear"))])?);
    assert!(alone.contains("without a factor"), "{alone}");
    Ok(())
}

#[test]
fn sizes_by_layer_have_to_be_equal() -> Outcome {
    let directory = tempfile::tempdir()?;
    let list = |sizes: &[u32]| Value::Array(sizes.iter().map(|&size| Value::U32(size)).collect());
    let sizes = [
        ("attention.head_count", HEADS, "num_attention_heads"),
        ("attention.head_count_kv", KV_HEADS, "num_key_value_heads"),
        ("feed_forward_length", MLP, "intermediate_size"),
    ];
    for (key, size, name) in sizes {
        let key = format!("llama.{key}");
        let open = |sizes: &[u32]| -> Result<_, Box<dyn std::error::Error>> {
            let draft = draft("llama", GgmlDType::F32)?.set(&key, list(sizes));
            let path = draft.write(directory.path())?;
            Ok(Gguf::open(&path).and_then(|gguf| gguf.config()))
        };
        assert_eq!(open(&[size as u32; 3])??[name], size);
        for other in [vec![size as u32, 1], vec![], vec![0]] {
            let refused = reason(open(&other)?);
            assert!(refused.contains(&key) && refused.contains("one shape"), "{refused}");
        }
    }
    Ok(())
}

/// Unknown keys, and keys of unsupported features, are refused by name.
#[test]
fn no_metadata_is_skipped() -> Outcome {
    let directory = tempfile::tempdir()?;
    let text = |text: &str| Value::String(text.to_owned());
    let refused = [
        ("llama.tomorrow", Value::U32(1), "llama.tomorrow is 1"),
        ("llama.expert_count", Value::U32(8), "llama.expert_count is 8, expected 0"),
        ("llama.logit_scale", Value::F32(0.5), "llama.logit_scale is 0.5, expected 1"),
        ("llama.final_logit_softcapping", Value::F32(30.0), "final_logit_softcapping is 30.0"),
        ("llama.attention.causal", Value::Bool(false), "llama.attention.causal is false"),
        ("llama.attention.scale", Value::F32(0.5), "llama.attention.scale is 0.5"),
        ("llama.attention.value_length", Value::U32(32), "expected 64"),
        ("llama.attention.sliding_window_pattern", Value::U32(6), "sliding_window_pattern is 6"),
        ("general.quantization_version", Value::U32(3), "quantization_version is 3"),
        ("tokenizer.ggml.tomorrow", text("x"), "tokenizer.ggml.tomorrow is \"x\""),
    ];
    for (key, value, part) in refused {
        let path = draft("llama", GgmlDType::F32)?.set(key, value).write(directory.path())?;
        let gguf = Gguf::open(&path)?;
        let reads = [gguf.config(), gguf.tokenizer_json()].map(|read| read.map(|_| ()));
        let found = reads.into_iter().find(Result::is_err);
        let found = reason(found.unwrap_or(Ok(())));
        assert!(found.contains(part), "{key}: {found}");
    }
    let accepted = draft("llama", GgmlDType::F32)?
        .set("llama.attention.scale", Value::F32(0.125)) // 1 / √64
        .set("llama.attention.value_length", Value::U32(64))
        .set("llama.expert_count", Value::U32(0))
        .set("llama.vocab_size", Value::U32(12))
        .set("general.name", text("a model"))
        .set("general.quantization_version", Value::U32(2))
        .set("quantize.imatrix.file", text("x.dat"))
        .set("someone.quantized_by", text("someone"))
        .set("qwen2.tomorrow", Value::U32(1)) // another architecture's
        .set("tokenizer.ggml.mask_token_id", Value::U32(3))
        .set("tokenizer.chat_template.tool_use", text("{{ x }}"));
    let gguf = Gguf::open(&accepted.write(directory.path())?)?;
    assert!(gguf.config().is_ok(), "{:?}", gguf.config());
    assert!(gguf.tokenizer_json().is_ok(), "{:?}", gguf.tokenizer_json());
    Ok(())
}

#[test]
fn the_template_for_tools_serves_conversations_with_tools() -> Outcome {
    let directory = tempfile::tempdir()?;
    let template = Value::String("{{ tools | length }} tools".to_owned());
    let path = draft("llama", GgmlDType::F32)?
        .set("tokenizer.chat_template.tool_use", template)
        .set("tokenizer.chat_templates", strings(&["tool_use"]))
        .write(directory.path())?;
    let template = ChatTemplate::open(&path)?;
    let messages = [Message::new("user", "a")];
    assert_eq!(template.render(&messages, false)?, "<bos>a<eos>");
    let tools = [serde_json::json!({ "type": "function" })];
    assert_eq!(template.render_with_tools(&messages, Some(&tools), false)?, "1 tools");
    Ok(())
}

/// The names that llama.cpp gives to the parts of a model.
fn part_name(part: usize, count: usize) -> String {
    format!("model-{:05}-of-{count:05}.gguf", part + 1)
}

/// Writes a model as llama.cpp splits it: metadata in the first part, tensors distributed over all parts.
fn write_split(directory: &Path, count: usize) -> Outcome {
    let Draft { metadata, tensors } = draft("llama", GgmlDType::Q4_1)?;
    let total = tensors.len();
    let mut parts: Vec<Draft> =
        (0..count).map(|_| Draft { metadata: Vec::new(), tensors: Vec::new() }).collect();
    parts[0].metadata = metadata;
    for (i, tensor) in tensors.into_iter().enumerate() {
        parts[i * count / total].tensors.push(tensor);
    }
    for (i, part) in parts.into_iter().enumerate() {
        let part = part
            .set("split.no", Value::U16(i as u16))
            .set("split.count", Value::U16(count as u16))
            .set("split.tensors.count", Value::I32(total as i32));
        fs::write(directory.join(part_name(i, count)), part.bytes()?)?;
    }
    Ok(())
}

#[test]
fn a_split_model_is_read_whole_from_its_first_part() -> Outcome {
    let directory = tempfile::tempdir()?;
    let whole = Weights::open(&draft("llama", GgmlDType::Q4_1)?.write(directory.path())?)?;
    write_split(directory.path(), 3)?;
    let first = directory.path().join(part_name(0, 3));
    let weights = Weights::open(&first)?;
    assert_eq!(weights.names().collect::<Vec<_>>(), whole.names().collect::<Vec<_>>());
    assert_eq!(weights.dtypes(), whole.dtypes());
    for name in whole.names() {
        let expected = whole.load(name, Kind::Float, Device::Cpu)?;
        assert_eq!(weights.load(name, Kind::Float, Device::Cpu)?, expected, "{name}");
    }
    let opened = Decoder::open(&first, Kind::Float, Device::Cpu)?;
    let elements = whole.names().map(|name| whole.load(name, Kind::Float, Device::Cpu));
    let elements = elements.map(|tensor| Ok(tensor?.numel())).sum::<Result<usize, Error>>()?;
    assert_eq!(opened.weights().iter().map(|(_, weight)| weight.numel()).sum::<usize>(), elements);
    let alone = directory.path().join("alone");
    fs::create_dir(&alone)?;
    let alone = draft("llama", GgmlDType::Q4_1)?.write(&alone)?;
    let ids = |file: &Path| Tokenizer::open(file).and_then(|own| own.encode("a b c", false));
    assert_eq!(ids(&first)?, ids(&alone)?);

    let second = directory.path().join(part_name(1, 3));
    let refused = reason(Gguf::open(&second));
    assert!(refused.contains("part 2 of 3; open the first, model-00001-of-00003"), "{refused}");
    fs::rename(&second, directory.path().join("kept"))?;
    let refused = reason(Gguf::open(&first));
    assert!(refused.contains("model-00002-of-00003.gguf is not beside it"), "{refused}");
    fs::copy(directory.path().join(part_name(2, 3)), &second)?;
    let refused = reason(Gguf::open(&first));
    assert!(refused.contains("its split.no is 2 and its split.count 3, expected 1"), "{refused}");
    fs::rename(directory.path().join("kept"), &second)?;
    let renamed = directory.path().join("renamed.gguf");
    fs::rename(&first, &renamed)?;
    assert!(reason(Gguf::open(&renamed)).contains("does not end in -00001-of-00003.gguf"));
    let mut short = fs::read(&renamed)?;
    let at = short.windows(19).position(|w| w == b"split.tensors.count").ok_or("no such key")?;
    short[at + 19 + 4] += 1;
    fs::write(&first, short)?;
    let refused = reason(Gguf::open(&first));
    assert!(refused.contains("hold 12 tensors, split.tensors.count is 13"), "{refused}");
    Ok(())
}

#[test]
fn a_converted_directory_is_whole_and_never_half() -> Outcome {
    let directory = tempfile::tempdir()?;
    let file = draft("llama", GgmlDType::Q8_0)?.write(directory.path())?;
    let out = directory.path().join("parent/converted");
    convert_gguf(&file, &out)?;
    let (quantised, written) = (Weights::open(&file)?, Weights::open(&out)?);
    assert_eq!(written.names().count(), TENSORS.len());
    for name in quantised.names() {
        let same = quantised.load(name, Kind::Float, Device::Cpu)?;
        assert_eq!(written.load(name, Kind::Float, Device::Cpu)?, same, "{name}");
    }
    let text = "ab ab<tool> 12c<eos>";
    let tokenizer = Tokenizer::open(&out)?;
    let ids = tokenizer.encode(text, true)?;
    assert_eq!(ids, [9, 10, 11, 6, 7, 8, 5, 1]);
    assert_eq!(tokenizer.decode(&ids, true)?, "ab ab<tool> 12c"); // user-defined tokens are text
    assert_eq!(
        (tokenizer.bos_id(), tokenizer.eos_ids(), tokenizer.pad_id()),
        (Some(0), [1, 2].as_slice(), None)
    );
    assert_eq!(Tokenizer::open(&file)?.encode(text, true)?, ids);
    for source in [&file, &out] {
        let chat = ChatTemplate::open(source)?;
        assert_eq!(chat.render(&[Message::new("user", "a<b")], false)?, "<bos>a<b<eos>");
    }
    assert!(matches!(convert_gguf(&file, &out), Err(Error::OutputExists(path)) if path == out));

    let no_merges = draft("llama", GgmlDType::F32)?.without("tokenizer.ggml.merges");
    let file = no_merges.write(directory.path())?;
    let other = directory.path().join("other");
    assert!(reason(convert_gguf(&file, &other)).contains("tokenizer.ggml.merges is missing"));
    let mut left: Vec<_> =
        fs::read_dir(directory.path())?.flatten().map(|e| e.file_name()).collect();
    left.sort();
    assert_eq!(left, ["model.gguf", "parent"]);
    Ok(())
}

#[test]
fn pre_tokenizers_differ_as_their_models_do() -> Outcome {
    let directory = tempfile::tempdir()?;
    // With a merge "1 2", "12" is one token unless digits are split first; llama-bpe also begins with bos.
    let tokens = ["<bos>", "<eos>", "<eot>", "a", "b", "c", "Ġ", "1", "2", "ab", "12", "Ġab"];
    let cases = [
        ("smollm", vec![7, 8, 11]),
        ("qwen2", vec![7, 8, 11]),
        ("gpt-2", vec![10, 11]),
        ("llama-bpe", vec![0, 10, 11]),
    ];
    for (pre, expected) in cases {
        let draft = draft("llama", GgmlDType::F32)?
            .set("tokenizer.ggml.pre", Value::String(pre.to_owned()))
            .set("tokenizer.ggml.tokens", strings(&tokens))
            .set("tokenizer.ggml.merges", strings(&["a b", "Ġ ab", "1 2"]));
        let tokenizer = Tokenizer::open(&draft.write(directory.path())?)?;
        assert_eq!(tokenizer.encode("12 ab", true)?, expected, "{pre}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_read_is_refused_with_its_name() -> Outcome {
    let directory = tempfile::tempdir()?;
    let text = |text: &str| Value::String(text.to_owned());
    let path = draft("gemma2", GgmlDType::F32)?.write(directory.path())?;
    assert!(reason(Gguf::open(&path)).contains("\"gemma2\""));
    let tokenizer_cases = [
        ("tokenizer.ggml.model", text("rwkv"), "kind \"rwkv\""),
        ("tokenizer.ggml.pre", text("jais"), "jais"),
        ("tokenizer.ggml.merges", strings(&["ab"]), "\"ab\""),
        ("tokenizer.ggml.token_type", Value::Array(vec![Value::I32(1)]), "1 token types for 12"),
        ("tokenizer.ggml.eos_token_id", Value::U32(12), "eos_token_id is 12"),
        ("llama.context_length", Value::F32(1.0), "expected an integer"),
    ];
    for (key, value, part) in tokenizer_cases {
        let path = draft("llama", GgmlDType::F32)?.set(key, value).write(directory.path())?;
        let gguf = Gguf::open(&path)?;
        let errors = [reason(gguf.tokenizer_json()), reason(gguf.tokenizer_config())];
        assert!(errors.iter().any(|error| error.contains(part)), "{key}: {errors:?}");
    }
    let mut odd = draft("llama", GgmlDType::F32)?;
    odd.tensors.push(("blk.0.ssm_a".to_owned(), quantised(&[1.0], &[1], GgmlDType::F32)?));
    assert!(reason(Gguf::open(&odd.write(directory.path())?)).contains("blk.0.ssm_a"));
    let path = directory.path().join("not.gguf");
    fs::write(&path, "hello")?;
    assert!(reason(Gguf::open(&path)).contains("starts with"));
    Ok(())
}

/// Writes numbers as GGUF does.
fn header(parts: &[&[u8]]) -> Vec<u8> {
    [b"GGUF".as_slice(), &3u32.to_le_bytes(), &parts.concat()].concat()
}

#[test]
fn hostile_headers_are_refused_before_anything_is_allocated() -> Outcome {
    let n = |n: u64| n.to_le_bytes();
    let key = |text: &str| [n(text.len() as u64).as_slice(), text.as_bytes()].concat();
    let u = |n: u32| n.to_le_bytes();
    let cases: [(Vec<u8>, &str); 8] = [
        (header(&[&n(u64::MAX), &n(0)]), "cut short"),
        (header(&[&n(0), &n(1), &n(u64::MAX)]), "cut short"),
        (header(&[&n(0), &n(1), &key("general.alignment"), &u(4), &u(0)]), "power of two"),
        (header(&[&n(0), &n(1), &key("a"), &u(9), &u(0), &n(1 << 60)]), "an array of"),
        (header(&[&n(0), &n(1), &key("a"), &u(9), &u(9), &n(1 << 20)]), "cut short"),
        (header(&[&n(0), &n(1), &key("a"), &u(77)]), "type 77"),
        (
            header(&[&n(1), &n(0), &key("t"), &u(2), &n(1 << 40), &n(1 << 40), &u(0), &n(0)]),
            "too many",
        ),
        (header(&[&n(1), &n(0), &key("t"), &u(1), &n(32), &u(16), &n(0)]), "ggml type 16"),
    ];
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("x.gguf");
    for (bytes, part) in cases {
        fs::write(&path, &bytes)?;
        let found = reason(Gguf::open(&path));
        assert!(found.contains(part), "{part:?} is not in {found:?}");
    }
    let whole = draft("llama", GgmlDType::F32)?.bytes()?;
    fs::write(&path, &whole[..whole.len() - 64])?;
    assert!(reason(Gguf::open(&path)).contains("cut short"));
    Ok(())
}

/// Reads everything that can be read, and expects only that it returns.
fn read_all(path: &Path) {
    if let Ok(gguf) = Gguf::open(path) {
        let _ = (gguf.config(), gguf.generation_config());
        let _ = (Tokenizer::open(path), ChatTemplate::open(path));
    }
    if let Ok(weights) = Weights::open(path) {
        for name in weights.names() {
            let _ = weights.load(name, Kind::Float, Device::Cpu);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_header_never_panics(
        flips in proptest::collection::vec((0usize..2600, prop_oneof![any::<u8>(), Just(0), Just(255)]), 1..4),
        cut in proptest::option::weighted(0.2, any::<usize>()),
    ) {
        static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let draft = draft("llama", GgmlDType::Q4K).expect("a model");
            draft.bytes().expect("a file")
        });
        let mut bytes = WHOLE.clone();
        for (at, value) in flips {
            bytes[at] = value;
        }
        let len = bytes.len();
        bytes.truncate(cut.map_or(len, |cut| cut % len));
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("x.gguf");
        fs::write(&path, bytes)?;
        read_all(&path);
    }

    #[test]
    fn random_bytes_are_not_gguf(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("x.gguf");
        fs::write(&path, &bytes)?;
        prop_assert!(Gguf::open(&path).is_err());
        fs::write(&path, header(&[&bytes]))?;
        read_all(&path);
    }
}
