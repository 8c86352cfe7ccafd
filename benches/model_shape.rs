use reft_models::{Decoder, DecoderConfig, Model, Weights};
use serde_json::json;
use tch::{Device, Kind};

/// A decoder of SmolLM2-135M's width with fewer layers, a smaller vocabulary and random weights.
pub fn decoder(layers: usize, device: Device) -> Decoder {
    let config = json!({
        "model_type": "llama",
        "vocab_size": 8192,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": layers,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": true,
    });
    tch::manual_seed(0);
    let config = DecoderConfig::from_json(config, "the bench's model".as_ref())
        .expect("invariant: a decoder's configuration");
    let weights = Weights::random(&config.describe().tensors);
    Decoder::from_weights(config, &weights, Kind::Float, device)
        .expect("invariant: weights made for this configuration")
}

/// Pseudo-random tokens of a row.
pub fn tokens(row: i64, length: usize, model: &dyn Model) -> Vec<i64> {
    let v = model.description().vocab_size;
    (0..length as i64).map(|t| (row * 1_000_003 + t * 7_919) % v).collect()
}
