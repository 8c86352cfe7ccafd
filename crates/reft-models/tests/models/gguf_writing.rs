//! GGUF files written by this crate: reading them back gives the original model.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use reft_models::{
    AdapterStack, ChatTemplate, Decoder, DecoderConfig, Error, Generated, GenerationConfig,
    GgufKind, Message, ModelTensor, PaddingSide, Row, Tokenizer, Weights, export_gguf, generate,
    save_safetensors,
};
use reft_test_support::{Outcome, demo_model, largest_difference, oracle};
use serde_json::{Map, Value as Json, json};
use tch::{Device, Kind, Tensor};

use crate::oracle::base_logits;

/// Every family that can be written, llama.cpp's name for it, and changes of the configuration that llama.cpp needs.
fn written() -> Vec<(&'static str, &'static str, Json)> {
    // the head size as scale, and no biases, which llama.cpp lacks
    let gemma = || json!({ "query_pre_attn_scalar": 24, "attention_bias": false });
    let olmo =
        |rope: Json| json!({ "attention_bias": false, "head_dim": 8, "rope_parameters": rope });
    let (theta, none) = (json!({ "rope_type": "default", "rope_theta": 10000.0 }), json!({}));
    let ropes = json!({ "full_attention": theta, "sliding_attention": theta });
    let smollm3 = json!({
        "no_rope_layers": null, "no_rope_layer_interval": 4, "attention_bias": false, "mlp_bias": false,
        "use_sliding_window": false, "layer_types": null,
    });
    // llama.cpp uses the long factors in every context larger than the original one
    let longrope = json!({
        "max_position_embeddings": 1024, "original_max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 800.0, "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 256,
            "short_factor": [1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4],
            "long_factor": [1.5, 2.2, 2.9, 3.6, 4.3, 5.0, 5.7, 6.4, 7.1],
        },
    });
    vec![
        ("tiny_llama", "llama", none.clone()),
        ("families/llama_tied", "llama", none.clone()),
        ("families/llama_biases", "llama", none.clone()),
        ("families/llama_head_dim", "llama", none.clone()),
        ("families/llama_rope_linear", "llama", none.clone()),
        ("families/llama_bf16", "llama", none.clone()),
        ("families/mistral", "llama", none.clone()),
        ("families/qwen2", "qwen2", none.clone()),
        ("families/qwen3", "qwen3", none.clone()),
        ("more_families/gemma2", "gemma2", gemma()),
        ("more_families/gemma3", "gemma3", gemma()),
        ("more_families/smollm3", "smollm3", smollm3),
        ("more_families/granite", "granite", none.clone()),
        ("more_families/olmo2", "olmo2", olmo(theta.clone())),
        ("more_families/olmo3", "olmo2", olmo(ropes)),
        ("more_families/phi3", "phi3", json!({ "sliding_window": null, "head_dim": 8 })),
        ("more_families/phi3_longrope", "phi3", longrope),
    ]
}

fn opened(path: &Path) -> Outcome<Decoder> {
    Ok(Decoder::open(path, Kind::Float, Device::Cpu)?)
}

/// A model of the oracle with changed fields of the configuration; null: the field is removed.
fn with_changes(name: &str, changes: &Json) -> Outcome<Decoder> {
    let file = oracle(name).join("config.json");
    let mut config: Json = serde_json::from_str(&fs::read_to_string(&file)?)?;
    let fields = config.as_object_mut().ok_or("no fields")?;
    for (field, value) in changes.as_object().ok_or("no fields")? {
        match value {
            Json::Null => _ = fields.remove(field),
            value => _ = fields.insert(field.clone(), value.clone()),
        }
    }
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("config.json"), config.to_string())?;
    let tensors = DecoderConfig::open(dir.path())?.describe().tensors;
    let weights = Weights::open(&oracle(name))?;
    let is_there = |tensor: &&ModelTensor| weights.names().any(|name| name == tensor.name);
    tch::manual_seed(4);
    let load = |tensor: &ModelTensor| {
        let own = match weights.shape(&tensor.name) == Some(&tensor.shape) {
            true => weights.load(&tensor.name, Kind::Float, Device::Cpu)?,
            false => Tensor::randn(&tensor.shape, (Kind::Float, Device::Cpu)) * 0.3, // shapes changed by the configuration
        };
        Ok((tensor.name.clone(), own))
    };
    let tensors: Outcome<Vec<_>> = tensors.iter().filter(is_there).map(load).collect();
    save_safetensors(&dir.path().join("model.safetensors"), &tensors?, None)?;
    opened(dir.path())
}

fn exported(name: &str, kind: GgufKind, dir: &Path) -> Outcome<(Decoder, Vec<String>)> {
    let model = opened(&oracle(name))?;
    let notes = export_gguf(&model, &oracle(name), &dir.join("model.gguf"), kind)?;
    Ok((model, notes))
}

fn logits(model: &Decoder) -> Outcome<Vec<Tensor>> {
    let row = |n: i64| Row::prompt((0..n).map(|i| 3 + (i * 11 + n) % 60).collect());
    Ok(base_logits(model, &[row(19), row(7)], PaddingSide::Right)?)
}

/// A model with random weights in `dir`, with the configuration of `tiny_llama` and changes.
fn random(dir: &Path, changes: &Json) -> Outcome<Decoder> {
    let mut config: Json =
        serde_json::from_str(&fs::read_to_string(oracle("tiny_llama/config.json"))?)?;
    for (field, value) in changes.as_object().ok_or("no fields")? {
        config[field] = value.clone();
    }
    fs::write(dir.join("config.json"), config.to_string())?;
    let config = DecoderConfig::open(dir)?;
    tch::manual_seed(8);
    let weights = Weights::random(&config.describe().tensors);
    Ok(Decoder::from_weights(config, &weights, Kind::Float, Device::Cpu)?)
}

fn refusal(model: &Decoder, directory: &Path) -> Outcome<String> {
    let dir = tempfile::tempdir()?;
    let output = dir.path().join("model.gguf");
    match export_gguf(model, directory, &output, GgufKind::F32) {
        Err(Error::NoGgufForm { reason }) if !output.exists() => Ok(reason),
        other => Err(format!("not refused: {other:?}").into()),
    }
}

#[test]
fn a_written_file_is_the_model_to_the_last_bit() -> Outcome {
    for (name, architecture, changes) in written() {
        let (dir, model) = (tempfile::tempdir()?, with_changes(name, &changes)?);
        let file = dir.path().join("model.gguf");
        let notes = export_gguf(&model, &oracle(name), &file, GgufKind::F32)
            .map_err(|error| format!("{name}: {error}"))?;
        let again = opened(&file).map_err(|error| format!("{name}: {error}"))?;
        // llama.cpp's Llama has no windows: the file's context is cut before a window would hide tokens
        let is_cut =
            again.config().max_position_embeddings != model.config().max_position_embeddings;
        assert_eq!(notes.iter().any(|note| note.contains("no windows")), is_cut, "{name}");
        if !is_cut {
            let off = largest_difference(&logits(&again)?, &logits(&model)?);
            // the attention factor of LongRoPE is a root, and f32 in the file
            let rounding = if name.ends_with("longrope") { 2e-5 } else { 0.0 };
            assert!(off <= rounding, "{name}: {off:e}");
        }
        let text = String::from_utf8_lossy(&fs::read(&file)?[..200]).into_owned();
        assert!(text.contains(architecture), "{name}: {text}");
    }
    Ok(())
}

#[test]
fn a_window_that_llama_cpp_lacks_ends_the_context() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (model, notes) = exported("families/mistral", GgufKind::F32, dir.path())?;
    let again = opened(&dir.path().join("model.gguf"))?;
    let window = model.config().windows.iter().flatten().min().copied().ok_or("no window")?;
    assert_eq!(again.config().max_position_embeddings, window);
    assert!(notes[0].contains(&format!("the file's context is {window} tokens")), "{notes:?}");
    let within = [Row::prompt((0..window).map(|i| 3 + i).collect())];
    let logits = |model| base_logits(model, &within, PaddingSide::Right);
    assert_eq!(largest_difference(&logits(&again)?, &logits(&model)?), 0.0);
    Ok(())
}

#[test]
fn llama3s_factors_are_written_as_their_tensor() -> Outcome {
    let dir = tempfile::tempdir()?;
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let changes = json!({ "rope_scaling": scaling, "rope_theta": 500000.0, "max_position_embeddings": 131072 });
    let model = random(dir.path(), &changes)?;
    let file = dir.path().join("model.gguf");
    export_gguf(&model, dir.path(), &file, GgufKind::F32)?;
    assert_eq!(largest_difference(&logits(&opened(&file)?)?, &logits(&model)?), 0.0);
    let yarn = json!({
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0, "beta_slow": 2.0,
    });
    let dir = tempfile::tempdir()?;
    let model = random(dir.path(), &json!({ "rope_scaling": yarn }))?;
    let file = dir.path().join("model.gguf");
    export_gguf(&model, dir.path(), &file, GgufKind::F32)?;
    assert_eq!(largest_difference(&logits(&opened(&file)?)?, &logits(&model)?), 0.0);
    Ok(())
}

#[test]
fn matrices_are_held_in_the_kind_asked_for_and_vectors_in_f32() -> Outcome {
    for (kind, dtype, tolerance) in [
        (GgufKind::F16, "F16", 5e-2),
        (GgufKind::Bf16, "BF16", 5e-1),
        (GgufKind::Q8, "Q8_0", 5e-1), // of logits up to 12, 4 layers
    ] {
        let dir = tempfile::tempdir()?;
        let (model, _) = exported("tiny_llama", kind, dir.path())?;
        let file = dir.path().join("model.gguf");
        let dtypes = Weights::open(&file)?.dtypes();
        assert_eq!(dtypes, [("F32".to_owned(), 9), (dtype.to_owned(), 30)].into(), "{kind}");
        let off = largest_difference(&logits(&opened(&file)?)?, &logits(&model)?);
        assert!(off > 0.0 && off < tolerance, "{kind}: {off:e}");
    }
    // rows of 48 numbers are not whole blocks of 32
    let dir = tempfile::tempdir()?;
    exported("families/qwen2", GgufKind::Q8, dir.path())?;
    let dtypes = Weights::open(&dir.path().join("model.gguf"))?.dtypes();
    assert_eq!(dtypes["F16"], 2, "{dtypes:?}"); // down_proj of its two layers
    Ok(())
}

#[test]
fn tokenizers_and_templates_are_written_too() -> Outcome {
    for (name, is_sentencepiece) in [("byte_level", false), ("sentencepiece", true)] {
        let dir = tempfile::tempdir()?;
        let from = oracle(&format!("text/tokenizers/{name}.json"));
        fs::copy(from, dir.path().join("tokenizer.json"))?;
        fs::write(
            dir.path().join("chat_template.jinja"),
            "{% for m in messages %}{{ m.content }}{% endfor %}",
        )?;
        let model = random(dir.path(), &json!({ "vocab_size": 420 }))?;
        let file = dir.path().join("model.gguf");
        export_gguf(&model, dir.path(), &file, GgufKind::F32)?;
        let (own, found) = (Tokenizer::open(dir.path())?, Tokenizer::open(&file)?);
        // llama.cpp and this tokenizer add a space after a special token, but the reader of the file does not
        let special = if is_sentencepiece { "x" } else { "<s>x</s>" };
        for text in ["The quick brown fox, 42 times…", "naïve  größe\n\tx", special, ""] {
            let expected = own.encode(text, true)?;
            assert_eq!(found.encode(text, true)?, expected, "{name}: {text}");
            assert_eq!(
                found.decode(&expected, true)?,
                own.decode(&expected, true)?,
                "{name}: {text}"
            );
        }
        assert_eq!((found.bos_id(), found.eos_id()), (own.bos_id(), own.eos_id()), "{name}");
        assert_eq!(found.vocab_size(), 420);
        let message = Message::new("user", "hello");
        assert_eq!(ChatTemplate::open(&file)?.render(&[message], false)?, "hello");
        let keys = String::from_utf8_lossy(&fs::read(&file)?).contains("tokenizer.ggml.scores");
        assert_eq!(keys, is_sentencepiece, "{name}");
    }
    Ok(())
}

#[test]
fn what_llama_cpp_would_compute_otherwise_is_refused() -> Outcome {
    for (name, complaint) in [
        ("more_families/ministral3", "models of the type ministral3 are not written"),
        ("more_families/llama_yarn", "attention factor is 1.3"),
        ("more_families/gemma2", "no biases of attention's output"),
        ("more_families/llama_dynamic", "no RoPE of the type dynamic"),
        ("families/llama_rope_llama3", "llama3"), // its original context is not 8,192
    ] {
        let says = refusal(&opened(&oracle(name))?, &oracle(name))?;
        assert!(says.contains(complaint), "{name}: {says}");
    }
    let wide = with_changes("more_families/olmo2", &json!({ "attention_bias": false }))?;
    let says = refusal(&wide, &oracle("more_families/olmo2"))?;
    assert!(says.contains("the hidden size (32) for that of all query heads (96)"), "{says}");
    let with_tokenizer = |name: &str, vocab_size: i64| -> Outcome<String> {
        let dir = tempfile::tempdir()?;
        let from = oracle(&format!("text/tokenizers/{name}.json"));
        fs::copy(from, dir.path().join("tokenizer.json"))?;
        refusal(&random(dir.path(), &json!({ "vocab_size": vocab_size }))?, dir.path())
    };
    let says = with_tokenizer("unigram", 420)?;
    assert!(says.contains("of the type Unigram"), "{says}");
    let says = with_tokenizer("byte_level", 128)?;
    assert!(says.contains("the embeddings have 128 rows"), "{says}");
    let dir = tempfile::tempdir()?;
    let taken = dir.path().join("model.gguf");
    fs::write(&taken, "precious")?;
    let model = opened(&oracle("tiny_llama"))?;
    let refused = export_gguf(&model, &oracle("tiny_llama"), &taken, GgufKind::F32);
    assert!(matches!(refused, Err(Error::OutputExists(_))), "{refused:?}");
    assert_eq!(fs::read_to_string(&taken)?, "precious");
    Ok(())
}

/// Greedy replies of 12 tokens, as `check_gguf.mjs` takes them.
fn replies(model: &Decoder, rows: Vec<(Option<&str>, Vec<i64>)>) -> Outcome<Json> {
    let config = GenerationConfig { max_new_tokens: 12, ..GenerationConfig::default() };
    let prompts: Vec<Row> = rows.iter().map(|(_, ids)| Row::prompt(ids.clone())).collect();
    let go_on = &mut |_, _| ControlFlow::Continue(());
    let replies = generate(model, &AdapterStack::EMPTY, &prompts, &config, go_on)?;
    let row = |((text, ids), reply): ((Option<&str>, Vec<i64>), &Generated)| json!({ "text": text, "ids": ids, "reply": reply.ids });
    Ok(rows.into_iter().zip(&replies).map(row).collect())
}

/// A byte-level tokenizer of 64 tokens: node-llama-cpp stops without a tokenizer.
fn small_tokenizer(dir: &Path) -> Outcome {
    let letters = ('a'..='z').chain('A'..='Z').chain(['Ċ', 'Ġ', '.', ',']).map(String::from);
    let tokens = ["<s>".to_owned(), "</s>".to_owned()].into_iter().chain(letters);
    let tokens = tokens.chain(["ab".to_owned(), "ac".to_owned(), "ad".to_owned()]);
    let vocab: Map<String, Json> = tokens.enumerate().map(|(id, text)| (text, json!(id))).collect();
    let special = |id: usize, text: &str| {
        json!({
            "id": id, "content": text, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false,
        })
    };
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [special(0, "<s>"), special(1, "</s>")], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": { "type": "BPE", "vocab": vocab, "merges": [["a", "b"], ["a", "c"], ["a", "d"]] },
    });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string())?;
    let config = json!({ "bos_token": "<s>", "eos_token": "</s>" });
    Ok(fs::write(dir.join("tokenizer_config.json"), config.to_string())?)
}

/// Runs llama.cpp on the cases. Needs node and node-llama-cpp in the directory that NODE_LLAMA_CPP names; `tools/oracle/check_gguf.mjs` says
/// how to install it.
fn by_llama_cpp(cases: Vec<Json>, dir: &Path) -> Outcome {
    let directory = std::env::var("NODE_LLAMA_CPP")?;
    let list = dir.join("cases.json");
    fs::write(&list, Json::from(cases).to_string())?;
    let script = oracle("../../tools/oracle/check_gguf.mjs");
    assert!(Command::new("node").arg(script).arg(directory).arg(list).status()?.success());
    Ok(())
}

/// `NODE_LLAMA_CPP=DIR cargo test --workspace --test models -- --ignored llama_cpp`
#[test]
#[ignore = "needs node-llama-cpp, in a directory named by NODE_LLAMA_CPP"]
fn llama_cpp_computes_every_family_that_is_written() -> Outcome {
    let (dir, mut cases) = (tempfile::tempdir()?, Vec::new());
    small_tokenizer(dir.path())?;
    for (name, _, changes) in written() {
        let model = with_changes(name, &changes)?;
        let file = dir.path().join(format!("{}.gguf", name.replace('/', "-")));
        export_gguf(&model, dir.path(), &file, GgufKind::F32)?;
        let again = opened(&file)?;
        if again.config().max_position_embeddings < 16 {
            continue; // cut to a window of some tokens
        }
        let row = |n: i64| (None, (0..n).map(|i| 3 + (i * 11 + n) % 60).collect());
        let rows = replies(&again, vec![row(3), row(2)])?;
        cases.push(json!({ "file": file, "rows": rows, "exact": true }));
    }
    by_llama_cpp(cases, dir.path())
}

/// Both kinds of tokenizers, on models of random weights: the tokens of texts, and replies to them.
#[test]
#[ignore = "needs node-llama-cpp, in a directory named by NODE_LLAMA_CPP"]
fn llama_cpp_makes_the_same_tokens_of_texts() -> Outcome {
    let (dir, mut cases) = (tempfile::tempdir()?, Vec::new());
    for name in ["byte_level", "sentencepiece"] {
        let own = dir.path().join(name);
        fs::create_dir(&own)?;
        let from = oracle(&format!("text/tokenizers/{name}.json"));
        fs::copy(from, own.join("tokenizer.json"))?;
        let model = random(&own, &json!({ "vocab_size": 420 }))?;
        let file = own.join("model.gguf");
        export_gguf(&model, &own, &file, GgufKind::F32)?;
        let tokenizer = Tokenizer::open(&own)?;
        let texts = ["The quick brown fox, 42 times…", "naïve  größe\n\tx", "  two spaces first"];
        let row = |text| Ok((Some(text), tokenizer.encode(text, true)?));
        let rows: Outcome<Vec<_>> = texts.into_iter().map(row).collect();
        cases.push(json!({ "file": file, "rows": replies(&model, rows?)?, "exact": true }));
    }
    by_llama_cpp(cases, dir.path())
}

/// The demo model with its tokenizer.
#[test]
#[ignore = "needs node-llama-cpp, in a directory named by NODE_LLAMA_CPP"]
fn llama_cpp_replies_as_the_demo_model_does() -> Outcome {
    let (dir, mut cases, demo) = (tempfile::tempdir()?, Vec::new(), demo_model());
    let (model, tokenizer) = (opened(&demo)?, Tokenizer::open(&demo)?);
    let texts = [
        "The capital of France is",
        "def fibonacci(n):\n    ",
        "Once upon a time, in 1984,",
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
        "Größe, naïve, 東京 🚀:",
    ];
    for kind in [GgufKind::F32, GgufKind::F16, GgufKind::Q8] {
        let file = dir.path().join(format!("demo-{kind}.gguf"));
        export_gguf(&model, &demo, &file, kind)?;
        let row = |text| Ok((Some(text), tokenizer.encode(text, true)?));
        let rows: Outcome<Vec<_>> = texts.into_iter().map(row).collect();
        let rows = replies(&opened(&file)?, rows?)?;
        // llama.cpp rounds the activations to the kind of the f16 or packed weights
        cases.push(json!({ "file": file, "rows": rows, "exact": kind == GgufKind::F32 }));
    }
    by_llama_cpp(cases, dir.path())
}
