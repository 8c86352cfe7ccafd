//! How weights lie in memory: it is a matter of speed, and of no number.

use std::path::Path;

use reft_models::{Decoder, DecoderConfig, Model, Weights};
use tch::{Device, Kind};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Names of the weights whose columns, not rows, are contiguous.
fn laid_out_by_columns(decoder: &dyn Model) -> Vec<String> {
    let weights = decoder.weights().into_iter();
    let by_columns = weights.filter(|(_, weight)| {
        weight
            .tensor()
            .is_some_and(|w| w.dim() == 2 && !w.is_contiguous() && w.tr().is_contiguous())
    });
    by_columns.map(|(name, _)| name).collect()
}

#[test]
fn tall_f32_matrices_of_products_are_laid_out_by_columns_and_hold_the_files_numbers() -> Outcome {
    let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/tiny_llama"));
    let file = Weights::open(model)?;
    let decoder = Decoder::open(model, Kind::Float, Device::Cpu)?;
    for (name, weight) in decoder.weights() {
        assert_eq!(weight.dense(), file.load(&name, Kind::Float, Device::Cpu)?, "{name}");
    }
    let mut tall: Vec<String> = (0..decoder.config().num_hidden_layers)
        .flat_map(|layer| {
            ["gate", "up"].map(|p| format!("model.layers.{layer}.mlp.{p}_proj.weight"))
        })
        .collect();
    let tied = decoder.config().tie_word_embeddings;
    // embeddings that are only looked up are read by rows
    tall.push(if tied { "model.embed_tokens.weight" } else { "lm_head.weight" }.to_owned());
    let mut found = laid_out_by_columns(&decoder);
    tall.sort();
    found.sort();
    assert_eq!(found, tall);
    Ok(())
}

#[test]
fn embeddings_that_are_no_head_and_half_precision_stay_row_by_row() -> Outcome {
    let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/tiny_llama"));
    let decoder = Decoder::open(model, Kind::BFloat16, Device::Cpu)?;
    assert!(laid_out_by_columns(&decoder).is_empty());
    for tied in [true, false] {
        let mut config = DecoderConfig::open(model)?;
        config.tie_word_embeddings = tied;
        let weights = Weights::random(&config.describe().tensors);
        let decoder = Decoder::from_weights(config, &weights, Kind::Float, Device::Cpu)?;
        let found = laid_out_by_columns(&decoder);
        assert_eq!(found.contains(&"model.embed_tokens.weight".to_owned()), tied);
        assert_eq!(found.contains(&"lm_head.weight".to_owned()), !tied);
    }
    Ok(())
}
