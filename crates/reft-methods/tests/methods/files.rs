//! Broken and foreign adapter directories are refused, by name.

use std::path::Path;

use reft_methods::{Error, METHODS, MethodOptions, check_adapter};
use reft_models::{
    AdapterStack, Decoder, DecoderConfig, Model, Weights, load_safetensors, save_safetensors,
};
use tch::{Device, Kind, Tensor};

use crate::declarations::small;
use crate::oracle::{Outcome, Tensors, json, load_adapter, model, new_adapter, path, tiny_llama};

const CONFIG: &str = "adapter_config.json";

/// A copy of a recorded directory, to be broken.
pub fn copy_of(case: &str) -> Outcome<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    for file in [CONFIG, "adapter_model.safetensors"] {
        std::fs::copy(path(case).join(file), dir.path().join(file))?;
    }
    Ok(dir)
}

fn edit_config(path: &Path, edit: impl FnOnce(&mut serde_json::Value)) -> Outcome {
    let mut config = json(path)?;
    edit(&mut config);
    Ok(std::fs::write(path, config.to_string())?)
}

pub fn edit_tensors(dir: &Path, edit: impl FnOnce(&mut Tensors)) -> Outcome {
    let path = dir.join("adapter_model.safetensors");
    let mut tensors = load_safetensors(&path)?;
    edit(&mut tensors);
    Ok(save_safetensors(&path, &tensors.into_iter().collect::<Vec<_>>(), None)?)
}

fn refusal(dir: &Path, decoder: &Decoder) -> Outcome<reft_models::Error> {
    match load_adapter(dir, decoder) {
        Err(Error::Model(error)) => Ok(error),
        Err(error) => Err(error.into()),
        Ok(_) => Err("the directory is accepted".into()),
    }
}

#[test]
fn an_adapter_saved_twice_is_the_same_bytes() -> Outcome {
    let decoder = tiny_llama()?;
    for method in METHODS {
        tch::manual_seed(1);
        let stack = new_adapter(method.name, &MethodOptions::default(), &decoder)?;
        let mut files: Vec<Vec<(std::ffi::OsString, Vec<u8>)>> = Vec::new();
        for _ in 0..6 {
            let dir = tempfile::tempdir()?;
            stack.save(dir.path())?;
            let entries = std::fs::read_dir(dir.path())?;
            let file = |entry: std::io::Result<std::fs::DirEntry>| -> Outcome<_> {
                let entry = entry?;
                Ok((entry.file_name(), std::fs::read(entry.path())?))
            };
            let mut saved = entries.map(file).collect::<Outcome<Vec<_>>>()?;
            saved.sort();
            files.push(saved);
        }
        assert!(files.iter().all(|saved| *saved == files[0]), "{}", method.name);
        assert!(!files[0].is_empty(), "{}", method.name);
    }
    Ok(())
}

#[test]
fn missing_unexpected_and_misshapen_tensors_are_all_named() -> Outcome {
    let decoder = tiny_llama()?;
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let at = |module: &str| format!("base_model.model.model.layers.0.{module}");
    let cases = [
        (
            "peft/lora_qv",
            at("self_attn.q_proj.lora_A.weight"),
            at("self_attn.v_proj.lora_B.weight"),
        ),
        (
            "peft_more/dora",
            at("mlp.down_proj.lora_magnitude_vector"),
            at("self_attn.q_proj.lora_A.weight"),
        ),
        ("peft_more/ia3", at("mlp.down_proj.ia3_l"), at("self_attn.k_proj.ia3_l")),
    ];
    for (case, removed, reshaped) in cases {
        let dir = copy_of(case)?;
        edit_tensors(dir.path(), |tensors| {
            tensors.remove(&removed);
            tensors.insert(reshaped.clone(), zeros(&[5, 7]));
            tensors.insert("lora_C".into(), zeros(&[1]));
        })?;
        let refused = refusal(dir.path(), &decoder)?;
        let reft_models::Error::WeightMismatch { missing, unexpected, misshapen, .. } = &refused
        else {
            return Err(refused.into());
        };
        assert_eq!((missing, unexpected), (&vec![removed], &vec!["lora_C".to_owned()]), "{case}");
        assert_eq!(misshapen.len(), 1);
        assert_eq!((&misshapen[0].0, &misshapen[0].1), (&reshaped, &vec![5, 7]));
    }
    for case in ["peft/prefix", "peft/prompt"] {
        let dir = copy_of(case)?;
        edit_tensors(dir.path(), |tensors| {
            tensors.insert("prompt_embeddings".into(), zeros(&[5, 63]));
        })?;
        let refused = refusal(dir.path(), &decoder)?;
        let is_misshapen = matches!(&refused, reft_models::Error::WeightMismatch { misshapen, .. } if misshapen.len() == 1);
        assert!(is_misshapen, "{refused}");
    }
    Ok(())
}

#[test]
fn fields_that_would_change_the_numbers_are_refused_by_name() -> Outcome {
    let decoder = tiny_llama()?;
    let cases = [
        ("peft/lora_qv", "lora_bias", serde_json::json!(true)),
        ("peft/lora_qv", "modules_to_save", serde_json::json!(["lm_head"])),
        ("peft/lora_qv", "fan_in_fan_out", serde_json::json!(true)),
        ("peft/lora_qv", "init_lora_weights", serde_json::json!("pissa")),
        ("peft/lora_qv", "layer_replication", serde_json::json!([[0, 4], [2, 4]])),
        ("peft/lora_qv", "an_option_of_tomorrow", serde_json::json!(true)),
        ("peft/lora_qv", "lora_dropout", serde_json::json!(1.5)),
        ("peft/lora_qv", "r", serde_json::json!(0)),
        ("peft/lora_qv", "target_modules", serde_json::json!(["q_proj", "w_proj"])),
        ("peft/prefix", "num_transformer_submodules", serde_json::json!(2)),
        ("peft/prefix", "num_layers", serde_json::json!(3)),
        ("peft/prompt", "token_dim", serde_json::json!(32)),
        ("peft/prompt", "num_virtual_tokens", serde_json::json!(-1)),
        ("peft_more/ia3", "feedforward_modules", serde_json::json!(["up_proj"])),
    ];
    for (case, field, value) in cases {
        let dir = copy_of(case)?;
        edit_config(&dir.path().join(CONFIG), |config| config[field] = value)?;
        let refused = refusal(dir.path(), &decoder)?.to_string();
        let word = match field {
            "lora_dropout" => "dropout",
            "target_modules" => "v_proj", // the file has more tensors than that
            _ => field,
        };
        assert!(refused.contains(word), "{case} {field}: {refused}");
    }
    // a switched-off feature, or the name of the writing program, is no reason to refuse a file
    let dir = copy_of("peft/lora_qv")?;
    edit_config(&dir.path().join(CONFIG), |config| {
        config["use_qalora"] = false.into();
        config["trainable_token_indices"] = serde_json::Value::Null;
        config["peft_version"] = "0.18.0".into();
        config["init_lora_weights"] = "gaussian".into();
    })?;
    load_adapter(dir.path(), &decoder)?;
    for field in ["r", "lora_alpha"] {
        let dir = copy_of("peft/lora_qv")?;
        edit_config(&dir.path().join(CONFIG), |config| {
            drop(config.as_object_mut().and_then(|c| c.remove(field)))
        })?;
        let refused = refusal(dir.path(), &decoder)?;
        let reft_models::Error::Json { source, .. } = &refused else { return Err(refused.into()) };
        assert!(source.to_string().contains(field), "{source}");
    }
    Ok(())
}

#[test]
fn adapters_of_another_model_are_refused() -> Outcome {
    let tiny = tiny_llama()?;
    let other = model("families/llama_biases")?;
    // even if every tensor fits: another vocabulary
    let mut config = json(&path("tiny_llama/config.json"))?;
    config["vocab_size"] = 100.into();
    let config = DecoderConfig::from_json(config, Path::new("config.json"))?;
    let weights = Weights::random(&config.describe().tensors);
    let of_100 = Decoder::from_weights(config, &weights, Kind::Float, Device::Cpu)?;
    let methods = METHODS.iter().map(|declaration| (declaration.name, small(declaration)));
    for (method, options) in methods.chain([("loreft+lora", MethodOptions::default())]) {
        let dir = tempfile::tempdir()?;
        new_adapter(method, &options, &tiny)?.save(dir.path())?;
        assert!(load_adapter(dir.path(), &other).is_err(), "{method}");
        assert!(check_adapter(dir.path(), other.description()).is_err(), "{method}");
        let refused = refusal(dir.path(), &of_100)?.to_string();
        assert!(
            refused.contains("vocabulary 128") && refused.contains("vocabulary 100"),
            "{method}: {refused}"
        );
        assert!(check_adapter(dir.path(), of_100.description()).is_err(), "{method}");
    }
    Ok(())
}

#[test]
fn configurations_of_our_own_are_checked_when_they_are_read() -> Outcome {
    let decoder = tiny_llama()?;
    for (method, field, value, complaint) in [
        ("red", "layers", serde_json::json!([2, 1]), "ascending order"),
        ("red", "layers", serde_json::json!([4]), "layer 4"),
        ("red", "components", serde_json::json!(["attention_output"]), "attention_output"),
        ("series-adapter", "bottleneck_size", serde_json::json!(0), "bottleneck_size is 0"),
        ("parallel-adapter", "format_version", serde_json::json!(2), "format_version is 2"),
    ] {
        let dir = tempfile::tempdir()?;
        new_adapter(method, &MethodOptions::default(), &decoder)?.save(dir.path())?;
        edit_config(&dir.path().join("baseline_config.json"), |config| config[field] = value)?;
        let refused = refusal(dir.path(), &decoder)?.to_string();
        assert!(refused.contains(complaint), "{method} {field}: {refused}");
    }
    Ok(())
}

#[test]
fn directories_without_an_adapter_say_what_was_expected() -> Outcome {
    let decoder = tiny_llama()?;
    let dir = tempfile::tempdir()?;
    let expected = |result: Result<AdapterStack, Error>| match result {
        Err(Error::NotAnAdapter { expected, .. }) => Ok(expected),
        Err(other) => Err(other.to_string()),
        Ok(_) => Err("accepted".to_owned()),
    };
    assert!(expected(load_adapter(dir.path(), &decoder))?.contains("adapter_config.json"));
    std::fs::write(dir.path().join(CONFIG), r#"{"peft_type": "VERA"}"#)?;
    let refused = load_adapter(dir.path(), &decoder).err().ok_or("accepted")?;
    assert!(
        matches!(&refused, Error::UnknownAdapterType { found, .. } if found == "VERA"),
        "{refused}"
    );
    std::fs::write(dir.path().join(CONFIG), "{")?;
    let refused = refusal(dir.path(), &decoder)?;
    assert!(matches!(refused, reft_models::Error::Json { .. }), "{refused}");
    Ok(())
}
