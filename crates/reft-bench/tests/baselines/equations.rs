//! RED and bottleneck adapters against plain torch hooks (`tests/oracle/peft_more`), full fine-tuning against transformers.

use reft_bench::{
    BottleneckAdapter, BottleneckConfig, BottleneckKind, FullAdapter, RedAdapter, RedConfig,
    load_adapter, trainable_parameters,
};
use reft_models::{Adapter, BaseModel, Decoder, PaddingSide};
use serde_json::Value;

use crate::oracle::{
    Outcome, assert_gradients, assert_logits, assert_trajectory, difference, json, logits, loss,
    path, recorded, tensors, tiny_examples, tiny_llama,
};

fn adapter(name: &str, recording: &Value, decoder: &Decoder) -> Outcome<Box<dyn Adapter>> {
    let base_model = BaseModel::of(decoder.config(), "tiny_llama");
    let layers = serde_json::from_value(recording["layers"].clone())?;
    let components: Vec<String> = serde_json::from_value(recording["components"].clone())?;
    let components =
        components.iter().map(|name| name.parse()).collect::<reft_models::Result<_>>()?;
    if name.starts_with("red") {
        let config = RedConfig::new(layers, components, base_model);
        return Ok(Box::new(RedAdapter::new(config, decoder)?));
    }
    let kind = if name == "series" { BottleneckKind::Series } else { BottleneckKind::Parallel };
    let size = recording["bottleneck_size"].as_i64().ok_or("no size")?;
    let mut config = BottleneckConfig::new(kind, size, layers, components, base_model);
    config.act_fn = recording["act_fn"].as_str().ok_or("no act_fn")?.parse()?;
    Ok(Box::new(BottleneckAdapter::new(config, decoder)?))
}

#[test]
fn red_and_bottleneck_adapters_equal_their_equations_in_torch() -> Outcome {
    let decoder = tiny_llama()?;
    let examples = tiny_examples()?;
    let recordings = json(&path("peft_more/peft_more.json"))?;
    for name in ["red_mlp", "red_block", "series", "parallel"] {
        let recording = &recordings[name];
        let mut adapter = adapter(name, recording, &decoder)?;
        let tensors = tensors(&format!("peft_more/{name}.safetensors"))?;
        adapter.load_state(&recorded(&tensors, "init."))?;
        let found = logits(&decoder, &*adapter, &examples, PaddingSide::Right)?;
        assert_logits(name, &found, &tensors["logits"]);

        let gradients = recorded(&tensors, "grad.");
        let gradient = |name: &str| gradients[name].shallow_clone();
        assert_gradients(name, &decoder, &*adapter, &examples, &gradient)?;

        let dir = tempfile::tempdir()?;
        adapter.save(dir.path())?;
        let again = load_adapter(dir.path(), &decoder)?;
        assert_eq!(again.state(), adapter.state());
        assert_eq!(again.method(), adapter.method());
        let again = logits(&decoder, &*again, &examples, PaddingSide::Right)?;
        assert_eq!(difference(&found, &again), 0.0);

        assert_trajectory(name, &decoder, &*adapter, &examples, recording)?;
    }
    Ok(())
}

#[test]
fn full_fine_tuning_equals_transformers() -> Outcome {
    let decoder = tiny_llama()?;
    let examples = tiny_examples()?;
    let recording = json(&path("full_ft.json"))?;
    let full = FullAdapter::new(&decoder, "tiny_llama")?;
    assert_eq!(trainable_parameters(&full), decoder.config().parameters());
    loss(&decoder, &full, &examples)?.backward();
    let norms = recording["grad_l2_norms_step0"].as_object().ok_or("no norms")?;
    let parameters = full.parameters();
    assert_eq!(norms.len(), parameters.len());
    assert!(parameters.iter().all(|p| p.tensor.is_contiguous())); // in one order with their gradients
    for parameter in &parameters {
        let expected = norms[&parameter.name].as_f64().ok_or("no norm")?;
        let found = parameter.tensor.grad().norm().double_value(&[]);
        let relative = (found / expected - 1.0).abs();
        assert!(relative < 1e-4, "{}: {found}, expected {expected}", parameter.name); // f32 sums
    }
    assert_trajectory("full", &decoder, &full, &examples, &recording)?;

    // the trained weights, read into a fresh model, compute what the trained model does
    let dir = tempfile::tempdir()?;
    full.save(dir.path())?;
    let trained = logits(&decoder, &full, &examples, PaddingSide::Right)?;
    let fresh = tiny_llama()?;
    let again = load_adapter(dir.path(), &fresh)?;
    assert_eq!(again.method(), "full");
    let again = logits(&fresh, &*again, &examples, PaddingSide::Right)?;
    assert_eq!(difference(&trained, &again), 0.0);
    Ok(())
}
