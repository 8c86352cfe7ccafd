//! Families in GGUF files: models of `tests/oracle/more_families`, written with llama.cpp's names, permutations and metadata.

use crate::oracle::{base_logits, rows};
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use reft_models::{Decoder, DecoderConfig, Model, PaddingSide, Weights, load_safetensors};
use reft_test_support::{Outcome, assert_close, oracle, oracle_text, tensors};
use serde_json::{Value as Json, json};
use tch::{Device, Kind, Tensor};

use crate::gguf_files::{Draft, interleave, quantised};

fn parsed(name: &str) -> Outcome<Json> {
    Ok(serde_json::from_str(&oracle_text(name)?)?)
}

/// A family in a GGUF file.
struct Case {
    family: &'static str,
    architecture: &'static str,
    /// Metadata beside the sizes.
    keys: Vec<(&'static str, Value)>,
    /// Fields of `config.json` that the file cannot hold; null: the field is missing.
    fixed: Json,
}

fn cases() -> Vec<Case> {
    let (int, number) = (Value::U32, Value::F32);
    let text = |text: &str| Value::String(text.to_owned());
    let case = |family, architecture, keys, fixed| Case { family, architecture, keys, fixed };
    let one_rope = json!({ "rope_type": "default", "rope_theta": 10000.0 });
    vec![
        case(
            "gemma2",
            "gemma2",
            vec![
                ("attention.sliding_window", int(5)),
                ("attn_logit_softcapping", number(4.0)),
                ("final_logit_softcapping", number(3.0)),
            ],
            json!({ "query_pre_attn_scalar": 24 }),
        ),
        case(
            "gemma3",
            "gemma3",
            vec![
                ("attention.sliding_window", int(5)),
                ("final_logit_softcapping", number(6.0)),
                ("rope.freq_base", number(1000.0)),
                ("rope.freq_base_swa", number(50.0)),
                ("rope.scaling.type", text("linear")),
                ("rope.scaling.factor", number(4.0)),
            ],
            json!({ "query_pre_attn_scalar": 24 }),
        ),
        case(
            "smollm3",
            "smollm3",
            vec![("rope.freq_base", number(500.0))],
            json!({
                "no_rope_layers": null, "no_rope_layer_interval": 4, "use_sliding_window": false,
                "layer_types": null,
            }),
        ),
        case(
            "granite",
            "granite",
            vec![
                ("attention.scale", number(0.35)),
                ("embedding_scale", number(3.0)),
                ("residual_scale", number(0.6)),
                ("logit_scale", number(0.7)),
            ],
            json!({}),
        ),
        case("olmo2", "olmo2", vec![], json!({})),
        case(
            "olmo3",
            "olmo2",
            vec![("attention.sliding_window", int(5))],
            json!({
                "rope_parameters": { "full_attention": one_rope, "sliding_attention": one_rope },
            }),
        ),
        case(
            "phi3",
            "phi3",
            vec![
                ("attention.sliding_window", int(5)),
                ("rope.freq_base", number(800.0)),
                ("rope.dimension_count", int(18)),
                ("rope.scaling.original_context_length", int(4096)),
            ],
            json!({}),
        ),
        case(
            "phi3_longrope",
            "phi3",
            vec![
                ("rope.freq_base", number(800.0)),
                ("rope.dimension_count", int(18)),
                ("rope.scaling.original_context_length", int(12)),
                ("rope.scaling.attn_factor", number(1.25)),
            ],
            json!({ "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 800.0, "partial_rotary_factor": 0.75,
                "short_factor": SHORT, "long_factor": LONG, "attention_factor": 1.25,
            } }),
        ),
    ]
}

const SHORT: [f64; 9] = [1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4];
const LONG: [f64; 9] = [1.5, 2.2, 2.9, 3.6, 4.3, 5.0, 5.7, 6.4, 7.1];

/// llama.cpp's names of the modules of a block.
fn module(architecture: &str, name: &str) -> &'static str {
    let has_four_norms = architecture.starts_with("gemma");
    match name {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" if has_four_norms || architecture == "olmo2" => {
            "post_attention_norm"
        }
        "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.qkv_proj" => "attn_qkv",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" | "mlp.gate_up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        other => panic!("no module {other}"),
    }
}

/// The file that llama.cpp's converter would write for a family.
fn draft(case: &Case) -> Outcome<Draft> {
    let Case { family, architecture, keys, .. } = case;
    let config = parsed(&format!("more_families/{family}/config.json"))?;
    let mut metadata =
        vec![("general.architecture".to_owned(), Value::String((*architecture).to_owned()))];
    let mut set = |key: &str, value| metadata.push((format!("{architecture}.{key}"), value));
    let size = |name: &str| config[name].as_u64().unwrap_or_default() as u32;
    for (key, name) in [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
    ] {
        set(key, Value::U32(size(name)));
    }
    set("attention.key_length", Value::U32(24));
    set("attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    keys.iter().for_each(|(key, value)| set(key, value.clone()));
    let mut own = Vec::new();
    for (name, tensor) in
        load_safetensors(&oracle(&format!("more_families/{family}/model.safetensors")))?
    {
        let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
        let mut values: Vec<f32> = tensor.flatten(0, -1).try_into()?;
        let stored = match name.as_str() {
            "model.embed_tokens.weight" => "token_embd.weight".to_owned(),
            "model.norm.weight" => "output_norm.weight".to_owned(),
            "lm_head.weight" => "output.weight".to_owned(),
            of_layer => {
                let rest = of_layer.strip_prefix("model.layers.").ok_or("a layer")?;
                let (layer, rest) = rest.split_once('.').ok_or("a module")?;
                let (name, parameter) = rest.rsplit_once('.').ok_or("a parameter")?;
                format!("blk.{layer}.{}.{parameter}", module(architecture, name))
            }
        };
        if architecture.starts_with("gemma") && stored.ends_with("norm.weight") {
            values.iter_mut().for_each(|w| *w += 1.0);
        }
        let columns = if shape.len() == 2 { shape[1] } else { 1 };
        let heads = match stored.rsplit('.').nth(1) {
            Some("attn_q") => size("num_attention_heads"),
            Some("attn_k") => size("num_key_value_heads"),
            _ => 0,
        };
        if heads > 0 && ["smollm3", "granite"].contains(architecture) {
            values = interleave(&values, heads as usize, columns);
        }
        own.push((stored, quantised(&values, &shape, GgmlDType::F32)?));
    }
    if *family == "phi3_longrope" {
        for (name, factors) in [("short", SHORT), ("long", LONG)] {
            let factors = factors.map(|x| x as f32);
            let name = format!("rope_factors_{name}.weight");
            own.push((name, quantised(&factors, &[9], GgmlDType::F32)?));
        }
    }
    Ok(Draft { metadata, tensors: own })
}

/// The configuration of `config.json`, adjusted for the fields that the file cannot hold.
fn expected(case: &Case) -> Outcome<DecoderConfig> {
    let mut config = parsed(&format!("more_families/{}/config.json", case.family))?;
    let fields = config.as_object_mut().ok_or("an object")?;
    for (name, value) in case.fixed.as_object().into_iter().flatten() {
        match value {
            Json::Null => drop(fields.remove(name)),
            value => drop(fields.insert(name.clone(), value.clone())),
        }
    }
    Ok(DecoderConfig::from_json(config, "config.json".as_ref())?)
}

/// Files by llama.cpp's converter (`tools/oracle/make_gguf_families.py`), each with the fields of `config.json` that it cannot hold.
fn converted() -> Vec<(String, Json)> {
    let fixed = |family: &str| {
        let case = cases().into_iter().find(|case| case.family == family);
        (format!("more_families/{family}"), case.map_or_else(|| json!({}), |case| case.fixed))
    };
    let plain = |family: &str| (format!("families/{family}"), json!({}));
    let yarn = json!({
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 12,
        "beta_fast": 2.0, "beta_slow": 0.3, "attention_factor": 1.3,
    });
    let mut all = ["llama_biases", "llama_head_dim", "llama_rope_linear", "qwen2", "qwen3"]
        .map(plain)
        .to_vec();
    all.extend(["granite", "llama3"].map(|name| (format!("gguf_families/{name}"), json!({}))));
    all.extend(["gemma2", "gemma3", "smollm3"].map(fixed));
    let (phi3, mut longrope) = fixed("phi3_longrope");
    longrope["rope_parameters"]["attention_factor"] = json!(1.397_354_8); // computed by the converter, in f32
    all.push((phi3, longrope));
    all.extend(["olmo2", "olmo3"].map(|family| (format!("more_families/{family}"), json!({}))));
    let llama = json!({ "model_type": "llama", "sliding_window": null });
    all.push(("families/mistral".to_owned(), llama));
    all.push(("more_families/llama_yarn".to_owned(), json!({ "rope_parameters": yarn })));
    all.push(("more_families/ministral3".to_owned(), json!({ "sliding_window": null })));
    all
}

#[test]
fn files_of_llama_cpps_converter_are_the_models_that_they_were_made_of() -> Outcome {
    for (family, fixed) in converted() {
        let name = family.rsplit('/').next().unwrap_or_default();
        let file = oracle("gguf_families").join(format!("{name}.gguf"));
        let mut config = parsed(&format!("{family}/config.json"))?;
        let fields = config.as_object_mut().ok_or("an object")?;
        for (name, value) in fixed.as_object().into_iter().flatten() {
            fields.insert(name.clone(), value.clone());
        }
        let expected = DecoderConfig::from_json(config, "config.json".as_ref())?;
        let found = DecoderConfig::open(&file)?;
        assert_eq!(found, expected, "{family}");
        let io = tensors(&format!("{family}/io.safetensors"))?;
        let rows = rows(&io["input_ids"], &io["attention_mask"])?;
        let of = |config: DecoderConfig, weights| -> Outcome<Vec<Tensor>> {
            let decoder = Decoder::from_weights(config, &weights, Kind::Float, Device::Cpu)?;
            Ok(base_logits(&decoder, &rows, PaddingSide::Right)?)
        };
        let ours = of(found, Weights::open(&file)?)?;
        let theirs = of(expected, Weights::open(&oracle(&family))?)?;
        for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            let what = format!("{family}, row {i}");
            assert_close(&what, ours, theirs, 2e-5); // (1 + w) − 1 is rounded once
            if fixed == json!({}) {
                let expected = io["logits"].select(0, i as i64).narrow(0, 0, ours.size()[0]);
                let largest = expected.abs().max().double_value(&[]);
                assert_close(&what, ours, &expected, 2e-5 * (largest / 10.0).max(1.0));
            }
        }
    }
    Ok(())
}

#[test]
fn configuration_and_numbers_are_those_of_the_hugging_face_directory() -> Outcome {
    for case in cases() {
        let family = case.family;
        let directory = tempfile::tempdir()?;
        let file = draft(&case)?.write(directory.path())?;
        let config = DecoderConfig::open(&file)?;
        assert_eq!(config, expected(&case)?, "{family}");
        let theirs = Weights::open(&oracle("more_families").join(family))?;
        let ours = Weights::open(&file)?;
        for tensor in &config.describe().tensors {
            let read = |weights: &Weights| weights.load(&tensor.name, Kind::Float, Device::Cpu);
            // (1 + w) − 1 is rounded once
            let what = format!("{family} {}", tensor.name);
            assert_close(&what, &read(&ours)?, &read(&theirs)?, 2e-7);
        }
        let io = tensors(&format!("more_families/{family}/io.safetensors"))?;
        let rows = rows(&io["input_ids"], &io["attention_mask"])?;
        let of = |weights| -> Outcome<Tensor> {
            let decoder =
                Decoder::from_weights(config.clone(), &weights, Kind::Float, Device::Cpu)?;
            assert!(decoder.description().parameters() > 0);
            Ok(Tensor::cat(&base_logits(&decoder, &rows, PaddingSide::Right)?, 0))
        };
        assert_close(family, &of(ours)?, &of(theirs)?, 2e-5); // for the same reason
    }
    Ok(())
}
