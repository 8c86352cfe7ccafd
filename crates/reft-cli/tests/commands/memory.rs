//! The memory of a model, measured in processes of their own: weights are held once, and packed weights stay packed.

use std::collections::BTreeMap;
use std::path::Path;

use reft_models::{DecoderConfig, ModelTensor, save_safetensors};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::runs::{args, oracle, run, succeed};

/// Bytes of a shard, about.
const SHARD: usize = 120_000_000;

/// A checkpoint of 554 MB in five shards. Returns its size.
fn write_checkpoint(dir: &Path) -> Result<usize> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16,
        "num_key_value_heads": 4, "vocab_size": 8192, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 1e4, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
    });
    std::fs::write(dir.join("config.json"), config.to_string())?;
    let (mut shards, mut shard, mut bytes, mut total) = (0, Vec::new(), 0, 0);
    let mut weight_map: BTreeMap<String, String> = BTreeMap::new();
    let mut write = |shard: &mut Vec<(String, Tensor)>| -> Result {
        let file = format!("model-{shards}.safetensors");
        save_safetensors(&dir.join(&file), shard, None)?;
        weight_map.extend(shard.drain(..).map(|(name, _)| (name, file.clone())));
        shards += 1;
        Ok(())
    };
    for ModelTensor { name, shape, .. } in DecoderConfig::open(dir)?.describe().tensors {
        let tensor = Tensor::full(&shape, 0.01, (Kind::Float, Device::Cpu));
        bytes += tensor.numel() * 4;
        total += tensor.numel() * 4;
        shard.push((name, tensor));
        if bytes > SHARD {
            write(&mut shard)?;
            bytes = 0;
        }
    }
    write(&mut shard)?;
    let index = json!({ "metadata": {}, "weight_map": weight_map });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string())?;
    Ok(total)
}

/// `reft bench` of one short step; the process that reads the weights tells its own peak.
fn step(model: &Path, more: &[&str]) -> Result<Value> {
    let flags = [
        "--methods",
        "floor",
        "--batch-size",
        "1",
        "--prompt-length",
        "6",
        "--response-length",
        "2",
        "--steps",
        "1",
        "--threads",
        "1",
        "--json",
    ];
    let mut words = args!["bench", "--model", model];
    words.extend(flags.iter().chain(more).map(std::ffi::OsString::from));
    Ok(serde_json::from_str(&succeed(words)?.stdout)?)
}

fn peak_mb(report: &Value) -> Result<f64> {
    Ok(report["rows"][0]["peak_memory_mb"].as_f64().ok_or("no peak")?)
}

#[cfg(target_os = "linux")]
#[test]
fn weights_are_held_once_and_packed_ones_packed() -> Result {
    let dir = tempfile::tempdir()?;
    let size = write_checkpoint(dir.path())? as f64 / 1e6;
    assert!(size > 500.0 && dir.path().join("model-4.safetensors").is_file(), "{size}");
    let program = peak_mb(&step(&oracle("tiny_llama"), &[])?)?; // libtorch and a tiny model

    let dense = step(dir.path(), &[])?;
    assert!((dense["weights_mb"].as_f64().ok_or("no size")? - size).abs() < 0.01 * size, "{dense}");
    // beside the weights: read buffers and activations; pages of mapped files would be another 554 MB
    let held = peak_mb(&dense)? - program;
    assert!(held < size + 100.0, "{held} MB for {size}");

    // packed blocks, one layer's matrices (61 MB) or the head (34 MB) expanded, and temporary tensors
    let packed = step(dir.path(), &["--weights", "int8"])?;
    let weights = packed["weights_mb"].as_f64().ok_or("no size")?;
    assert!((weights - size * 8.5 / 32.0).abs() < 0.01 * size, "{weights} MB of {size}");
    let held = peak_mb(&packed)? - program;
    assert!(held < weights + 210.0 && held < 0.65 * size, "{held} MB for {weights}");
    Ok(())
}

#[test]
fn a_form_of_weights_that_does_not_exist_is_refused() -> Result {
    let run = run(args!["bench", "--model", oracle("tiny_llama"), "--weights", "int3"])?;
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("\"int3\"") && run.stderr.contains("as-stored"), "{}", run.stderr);
    Ok(())
}

/// Attention with a soft cap has no kernel in libtorch: every score is held for the backward, which `reft plan` counts.
#[cfg(target_os = "linux")]
#[test]
fn the_scores_of_a_soft_cap_are_planned_as_they_are_held() -> Result {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("config.json");
    let sizes = json!({
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 256,
        "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 1024, "max_position_embeddings": 2048,
        "query_pre_attn_scalar": 32, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
    });
    std::fs::write(&config, sizes.to_string())?;
    let case = args![
        "--model-config",
        config,
        "--batch-size",
        "2",
        "--prompt-length",
        "500",
        "--response-length",
        "20",
        "--threads",
        "1",
        "--json",
    ];
    let plan = args!["plan", "--method", "loreft", "--tflops", "1", "--memory", "64GB"];
    let plan: Value = serde_json::from_str(&succeed([plan, case.clone()].concat())?.stdout)?;
    let bench =
        args!["bench", "--methods", "loreft", "--random-weights", "--steps", "1", "--rounds", "1"];
    let held = peak_mb(&serde_json::from_str(&succeed([bench, case].concat())?.stdout)?)?;
    let planned = plan["peak_bytes"].as_f64().ok_or("no peak")? / 1e6;
    // without the scores it would be off by 46 %
    assert!((planned / held - 1.0).abs() < 0.15, "{planned} MB planned, {held} MB held");
    Ok(())
}
