//! Any configuration file is read or refused, without a panic or an excessive allocation.

use std::path::Path;

use proptest::prelude::*;
use reft_core::{InterventionConfig, Method};
use reft_methods::ReftConfig;
use reft_models::{BaseModel, DecoderConfig};
use serde_json::{Value, json};

fn decoder_config() -> Value {
    json!({
        "model_type": "mistral", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "attention_bias": false,
        "mlp_bias": false, "sliding_window": 4, "hidden_act": "silu", "max_position_embeddings": 256,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    })
}

fn reft_config() -> Result<Value, Box<dyn std::error::Error>> {
    let decoder = DecoderConfig::from_json(decoder_config(), Path::new("config.json"))?;
    let base_model = BaseModel::of(&decoder.describe(), "tiny");
    let intervention = InterventionConfig::new(Method::Loreft, 4);
    let config = ReftConfig::new(&intervention, vec![1, 3], "f2+l2".parse()?, base_model);
    Ok(serde_json::to_value(config)?)
}

/// Values that often cause faults, and some valid ones.
fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..300).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        Just(json!([])),
        Just(json!([-1, 1e30])),
        Just(json!([3, 1])),
        Just(json!({ "rope_type": "linear", "factor": 0 })),
        Just(json!("qwen2")),
        Just(json!(i64::MAX)),
        Just(json!(u64::MAX)),
    ]
}

/// Replaces the `at`-th field by a value, or adds the value under a new name.
fn put(config: &mut Value, at: prop::sample::Index, is_new: bool, value: Value) {
    let Some(fields) = config.as_object_mut() else { return };
    let names: Vec<String> = fields.keys().cloned().collect();
    let name = if is_new { "surplus".to_owned() } else { at.get(&names).clone() };
    fields.insert(name, value);
}

#[test]
fn the_unchanged_configurations_are_read() -> Result<(), Box<dyn std::error::Error>> {
    let decoder = DecoderConfig::from_json(decoder_config(), Path::new("config.json"))?;
    assert_eq!(decoder.windows, [Some(4); 4]);
    let reft: ReftConfig = serde_json::from_value(reft_config()?)?;
    reft.check_model(&decoder.describe())?;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_model_configuration_is_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), any_value()), 1..4),
    ) {
        let mut config = decoder_config();
        for (at, is_new, value) in changes {
            put(&mut config, at, is_new, value);
        }
        if let Ok(read) = DecoderConfig::from_json(config, Path::new("config.json")) {
            prop_assert!(read.describe().parameters() > 0);
            prop_assert_eq!(read.windows.len(), read.num_hidden_layers);
            prop_assert!(read.num_attention_heads % read.num_key_value_heads == 0);
        }
    }

    #[test]
    fn a_changed_adapter_configuration_is_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), any_value()), 1..4),
    ) {
        let mut config = reft_config().map_err(|error| TestCaseError::fail(error.to_string()))?;
        let mut has_surplus = false;
        for (at, is_new, value) in changes {
            has_surplus |= is_new;
            put(&mut config, at, is_new, value);
        }
        let read = serde_json::from_value::<ReftConfig>(config);
        prop_assert!(!has_surplus || read.is_err(), "a surplus field was accepted");
        if let Some(read) = read.ok().filter(|read| read.check().is_ok()) {
            prop_assert!(read.layers.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!((1..=read.base_model.hidden_size).contains(&read.low_rank_dimension));
            prop_assert!(!read.sites().is_empty());
        }
    }

    #[test]
    fn configuration_files_of_any_bytes_are_read_or_refused(
        cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte: u8,
    ) {
        let text = reft_config().map_err(|error| TestCaseError::fail(error.to_string()))?.to_string();
        let mut bytes = text.into_bytes();
        let position = at.index(bytes.len());
        bytes[position] = byte;
        let _outcome = serde_json::from_slice::<ReftConfig>(&bytes).map(|config| config.check());
        bytes.truncate(cut.index(bytes.len()));
        prop_assert!(serde_json::from_slice::<ReftConfig>(&bytes).is_err(), "half a file was accepted");
    }
}
