//! Broken and foreign adapter directories are refused, by name.

use std::path::Path;

use reft_bench::{Error, MethodOptions, load_adapter, method_names, new_adapter};
use reft_models::{Decoder, load_safetensors, save_safetensors};
use tch::{Device, Kind, Tensor};

use crate::oracle::{
    Outcome, Tensors, difference, disturb, json, logits, model, path, tiny_examples, tiny_llama,
};

/// A copy of a recorded directory, to be broken.
fn copy_of(case: &str) -> Outcome<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(path(case).join(file), dir.path().join(file))?;
    }
    Ok(dir)
}

fn edit_config(dir: &Path, edit: impl FnOnce(&mut serde_json::Value)) -> Outcome {
    let path = dir.join("adapter_config.json");
    let mut config = json(&path)?;
    edit(&mut config);
    Ok(std::fs::write(path, config.to_string())?)
}

fn edit_tensors(dir: &Path, edit: impl FnOnce(&mut Tensors)) -> Outcome {
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
        ("peft/lora_qv", "bias", serde_json::json!("all")),
        ("peft/lora_qv", "lora_bias", serde_json::json!(true)),
        ("peft/lora_qv", "modules_to_save", serde_json::json!(["lm_head"])),
        ("peft/lora_qv", "exclude_modules", serde_json::json!(["v_proj"])),
        ("peft/lora_qv", "fan_in_fan_out", serde_json::json!(true)),
        ("peft/lora_qv", "init_lora_weights", serde_json::json!("pissa")),
        ("peft/lora_qv", "layer_replication", serde_json::json!([[0, 4], [2, 4]])),
        ("peft/lora_qv", "an_option_of_tomorrow", serde_json::json!(true)),
        ("peft/lora_qv", "lora_dropout", serde_json::json!(1.5)),
        ("peft/lora_qv", "task_type", serde_json::json!("SEQ_CLS")),
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
        edit_config(dir.path(), |config| config[field] = value)?;
        let refused = refusal(dir.path(), &decoder)?.to_string();
        let word = match field {
            "lora_dropout" => "dropout",
            "target_modules" => "w_proj",
            _ => field,
        };
        assert!(refused.contains(word), "{case} {field}: {refused}");
    }
    // what is switched off, and who wrote the file, is no reason to refuse it
    let dir = copy_of("peft/lora_qv")?;
    edit_config(dir.path(), |config| {
        config["use_qalora"] = false.into();
        config["trainable_token_indices"] = serde_json::Value::Null;
        config["peft_version"] = "0.18.0".into();
        config["init_lora_weights"] = "gaussian".into();
    })?;
    load_adapter(dir.path(), &decoder)?;
    for field in ["r", "target_modules", "lora_alpha"] {
        let dir = copy_of("peft/lora_qv")?;
        edit_config(dir.path(), |config| {
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
    for method in method_names().into_iter().chain(["loreft+lora"]) {
        let dir = tempfile::tempdir()?;
        new_adapter(method, &MethodOptions::default(), &tiny, "tiny_llama")?.save(dir.path())?;
        assert!(load_adapter(dir.path(), &other).is_err(), "{method}");
    }
    // also where every tensor would fit: another vocabulary
    let config = |vocab_size: i64| -> Outcome<reft_models::DecoderConfig> {
        let mut config = json(&path("tiny_llama/config.json"))?;
        config["vocab_size"] = vocab_size.into();
        Ok(reft_models::DecoderConfig::from_json(config, Path::new("config.json"))?)
    };
    let dir = tempfile::tempdir()?;
    let weights: Vec<_> = config(100)?
        .tensor_shapes()
        .into_iter()
        .map(|(name, shape)| (name, Tensor::zeros(shape, (Kind::Float, Device::Cpu))))
        .collect();
    let file = dir.path().join("model.safetensors");
    save_safetensors(&file, &weights, None)?;
    let weights = reft_models::Weights::open(&file)?;
    let other = Decoder::from_weights(config(100)?, &weights, Kind::Float, Device::Cpu)?;
    for method in ["lora", "ia3", "prefix", "prompt", "red"] {
        let dir = tempfile::tempdir()?;
        new_adapter(method, &MethodOptions::default(), &tiny, "tiny_llama")?.save(dir.path())?;
        let refused = refusal(dir.path(), &other)?.to_string();
        assert!(
            refused.contains("vocabulary 128") && refused.contains("vocabulary 100"),
            "{refused}"
        );
    }
    Ok(())
}

#[test]
fn what_is_saved_is_what_is_loaded() -> Outcome {
    let examples = tiny_examples()?;
    for (i, method) in method_names().into_iter().enumerate() {
        let decoder = tiny_llama()?;
        let adapter = new_adapter(method, &MethodOptions::default(), &decoder, "tiny_llama")?;
        disturb(&*adapter, i as i64);
        let dir = tempfile::tempdir()?;
        adapter.save(dir.path())?;
        let run = |adapter: &dyn reft_models::Adapter| {
            logits(&decoder, adapter, &examples, reft_models::PaddingSide::Right)
        };
        let expected = run(&*adapter)?;
        let again = load_adapter(dir.path(), &decoder)?;
        assert_eq!(again.method(), method);
        let difference = difference(&expected, &run(&*again)?);
        assert_eq!(difference, 0.0, "{method}");
    }
    Ok(())
}

#[test]
fn directories_without_an_adapter_say_what_was_expected() -> Outcome {
    let decoder = tiny_llama()?;
    let dir = tempfile::tempdir()?;
    let expected = |result: Result<Box<dyn reft_models::Adapter>, Error>| match result {
        Err(Error::NotAnAdapter { expected, .. }) => Ok(expected),
        Err(other) => Err(other.to_string()),
        Ok(_) => Err("accepted".to_owned()),
    };
    assert!(expected(load_adapter(dir.path(), &decoder))?.contains("adapter_config.json"));
    std::fs::write(dir.path().join("adapter_config.json"), r#"{"peft_type": "VERA"}"#)?;
    assert!(expected(load_adapter(dir.path(), &decoder))?.contains("it says VERA"));
    std::fs::write(dir.path().join("adapter_config.json"), "{")?;
    let refused = refusal(dir.path(), &decoder)?;
    assert!(matches!(refused, reft_models::Error::Json { .. }), "{refused}");
    Ok(())
}
