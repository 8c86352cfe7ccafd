//! RED and bottleneck adapters (`tests/oracle/peft_more`) and BREP (`tests/oracle/brep`) against plain torch hooks, full fine-tuning against
//! transformers.

use reft_methods::{ACT_FN, BOTTLENECK_SIZE, COMPONENTS, LAYERS, MethodOptions, numel};
use reft_models::{AdapterStack, Model, PaddingSide};
use serde_json::Value;

use crate::oracle::{
    Outcome, assert_gradients, assert_logits, assert_trajectory, difference, json, load_adapter,
    logits, loss, new_adapter, path, recorded, tensors, tiny_examples, tiny_llama,
};

/// The method of a recording, and its options.
fn adapter(name: &str, recording: &Value, model: &dyn Model) -> Outcome<AdapterStack<'static>> {
    let mut options = MethodOptions::default();
    for option in [&LAYERS, &COMPONENTS, &BOTTLENECK_SIZE, &ACT_FN] {
        if let Some(value) = recording.get(option.name) {
            options.set(option, value.clone())?;
        }
    }
    let method = match name {
        "series" => "series-adapter",
        "parallel" => "parallel-adapter",
        _ => "red",
    };
    Ok(new_adapter(method, &options, model)?)
}

#[test]
fn red_and_bottleneck_adapters_equal_their_equations_in_torch() -> Outcome {
    let decoder = tiny_llama()?;
    let examples = tiny_examples()?;
    let recordings = json(&path("peft_more/peft_more.json"))?;
    for name in ["red_mlp", "red_block", "series", "parallel"] {
        let recording = &recordings[name];
        let adapter = adapter(name, recording, &decoder)?;
        let tensors = tensors(&format!("peft_more/{name}.safetensors"))?;
        adapter.load_state(&recorded(&tensors, "init."))?;
        let found = logits(&decoder, &adapter, &examples, PaddingSide::Right)?;
        assert_logits(name, &found, &tensors["logits"]);

        let gradients = recorded(&tensors, "grad.");
        let gradient = |name: &str| gradients[name].shallow_clone();
        assert_gradients(name, &decoder, &adapter, &examples, &gradient)?;

        let dir = tempfile::tempdir()?;
        adapter.save(dir.path())?;
        let again = load_adapter(dir.path(), &decoder)?;
        assert_eq!(again.state(), adapter.state());
        assert_eq!(again.method(), adapter.method());
        let again = logits(&decoder, &again, &examples, PaddingSide::Right)?;
        assert_eq!(difference(&found, &again), 0.0);

        assert_trajectory(name, &decoder, &adapter, &examples, recording)?;
    }
    Ok(())
}

/// Biases within the bound and beyond it: beyond it only the direction has a gradient.
#[test]
fn brep_equals_its_equation_in_torch() -> Outcome {
    let decoder = tiny_llama()?;
    let examples = tiny_examples()?;
    let recordings = json(&path("brep/brep.json"))?;
    let cases = recordings.as_object().ok_or("cases")?;
    assert_eq!(cases.len(), 2);
    for (name, recording) in cases {
        let options = recording["options"].as_object().ok_or("options")?;
        let options: MethodOptions = serde_json::from_value(options.clone().into())?;
        let adapter = new_adapter("brep", &options, &decoder)?;
        let tensors = tensors(&format!("brep/{name}.safetensors"))?;
        adapter.load_state(&recorded(&tensors, "init."))?;
        let found = logits(&decoder, &adapter, &examples, PaddingSide::Right)?;
        assert_logits(name, &found, &tensors["logits"]);
        let gradients = recorded(&tensors, "grad.");
        let gradient = |name: &str| gradients[name].shallow_clone();
        assert_gradients(name, &decoder, &adapter, &examples, &gradient)?;
        let dir = tempfile::tempdir()?;
        adapter.save(dir.path())?;
        let again = load_adapter(dir.path(), &decoder)?;
        assert_eq!(again.state(), adapter.state());
        let again = logits(&decoder, &again, &examples, PaddingSide::Right)?;
        assert_eq!(difference(&found, &again), 0.0);
        assert_trajectory(name, &decoder, &adapter, &examples, recording)?;
    }
    Ok(())
}

#[test]
fn full_fine_tuning_equals_transformers() -> Outcome {
    let decoder = tiny_llama()?;
    let examples = tiny_examples()?;
    let recording = json(&path("full_ft.json"))?;
    let full = new_adapter("full", &MethodOptions::default(), &decoder)?;
    assert_eq!(numel(&full.parameters()), decoder.description().parameters());
    loss(&decoder, &full, &examples)?.backward();
    let norms = recording["grad_l2_norms_step0"].as_object().ok_or("no norms")?;
    let parameters = full.parameters();
    assert_eq!(norms.len(), parameters.len());
    assert!(parameters.iter().all(|p| p.tensor.is_contiguous())); // in the same order as their gradients
    for parameter in &parameters {
        let expected = norms[&parameter.name].as_f64().ok_or("no norm")?;
        let found = parameter.tensor.grad().norm().double_value(&[]);
        let relative = (found / expected - 1.0).abs();
        assert!(relative < 1e-4, "{}: {found}, expected {expected}", parameter.name); // f32 sums
    }
    assert_trajectory("full", &decoder, &full, &examples, &recording)?;

    // the trained weights, read into a fresh model, compute the same as the trained model
    let dir = tempfile::tempdir()?;
    full.save(dir.path())?;
    let trained = logits(&decoder, &full, &examples, PaddingSide::Right)?;
    let fresh = tiny_llama()?;
    let again = load_adapter(dir.path(), &fresh)?;
    assert_eq!(again.method(), "full");
    let again = logits(&fresh, &again, &examples, PaddingSide::Right)?;
    assert_eq!(difference(&trained, &again), 0.0);
    Ok(())
}
