//! Methods on the families of `tests/oracle/more_families`: LoRA and LoReFT against PEFT 0.21.2 and plain torch, the others by properties
//! that hold for each.

use std::path::PathBuf;

use reft_core::{InterventionConfig, Method};
use reft_methods::{METHODS, MethodOptions, ReftAdapter, ReftConfig};
use reft_models::{
    Adapter, AdapterStack, BaseModel, Decoder, Model, PaddingSide, save_safetensors,
};
use reft_train::Example;
use tch::Tensor;

use crate::oracle::{
    GRADIENTS, Outcome, Tensors, assert_close, difference, disturb, examples, load_adapter, logits,
    loss, model, names_in, new_adapter, path, tensors,
};

struct Case {
    family: String,
    decoder: Decoder,
    io: Tensors,
    examples: Vec<Example>,
}

fn cases() -> Outcome<Vec<Case>> {
    tch::set_num_threads(1);
    let case = |family: String| {
        let name = format!("more_families/{family}");
        let io = tensors(&format!("{name}/io.safetensors"))?;
        let examples = examples(&name, &io["labels"])?;
        Ok(Case { decoder: model(&name)?, io, examples, family })
    };
    names_in(&path("more_families"))?.into_iter().map(case).collect()
}

/// Logits of every row against recorded ones, on either side of the padding.
fn assert_recorded(case: &Case, what: &str, stack: &AdapterStack) -> Outcome {
    let expected = &case.io[what];
    let tolerance = 2e-5 * (expected.abs().max().double_value(&[]) / 10.0).max(1.0);
    let base = &case.io["logits"];
    assert!((base - expected).abs().max().double_value(&[]) > 0.1, "{what} has no power");
    for padding in [PaddingSide::Right, PaddingSide::Left] {
        for (i, found) in logits(&case.decoder, stack, &case.examples, padding)?.iter().enumerate()
        {
            let expected = expected.select(0, i as i64).narrow(0, 0, found.size()[0]);
            let what = format!("{}: {what} of row {i}, {padding:?}", case.family);
            assert_close(&what, found, &expected, tolerance);
        }
    }
    Ok(())
}

#[test]
fn lora_of_peft_on_the_modules_of_each_family_gives_peft_logits() -> Outcome {
    let mut seen = 0;
    for case in cases()? {
        let dir: PathBuf = path("more_families").join(&case.family).join("lora");
        if dir.is_dir() {
            assert_recorded(&case, "lora.logits", &load_adapter(&dir, &case.decoder)?)?;
            seen += 1;
        }
    }
    assert_eq!(seen, 11);
    Ok(())
}

#[test]
fn loreft_and_its_gradients_equal_plain_torch() -> Outcome {
    for case in cases()? {
        let (layers, decoder) = ([0, 2], &case.decoder);
        let adapter = recorded_loreft(&case.io, decoder, &layers, "f2+l1")?;
        let stack = AdapterStack::one(&adapter);
        assert_recorded(&case, "reft.logits", &stack)?;
        loss(decoder, &stack, &case.examples)?.backward();
        assert_recorded_gradients(&case.family, &case.io, &stack, &layers)?;
    }
    Ok(())
}

/// The LoReFT on block outputs that a script recorded.
pub fn recorded_loreft(
    io: &Tensors,
    model: &Decoder,
    layers: &[usize],
    positions: &str,
) -> Outcome<ReftAdapter> {
    let base_model = BaseModel::of(model.description(), "tiny");
    let intervention = InterventionConfig::new(Method::Loreft, 3);
    let config = ReftConfig::new(&intervention, layers.to_vec(), positions.parse()?, base_model);
    let config = ReftConfig { share_weights: true, ..config };
    let dir = tempfile::tempdir()?;
    ReftAdapter::new(config, model)?.save(dir.path())?;
    let mut own: Vec<(String, Tensor)> = Vec::new();
    for layer in layers {
        for (name, part) in [
            ("rotation", "rotation"),
            ("learned_source.weight", "weight"),
            ("learned_source.bias", "bias"),
        ] {
            let recorded = &io[&format!("reft.{layer}.{part}")];
            let name = format!("layers.{layer}.block_output.tied.{name}");
            own.push((name, recorded.shallow_clone()));
        }
    }
    save_safetensors(&dir.path().join(ReftAdapter::FILE_NAME), &own, None)?;
    Ok(ReftAdapter::load(dir.path(), model)?.into_trainable()?)
}

/// Compares the gradients of a [`recorded_loreft`] with those recorded.
pub fn assert_recorded_gradients(
    what: &str,
    io: &Tensors,
    stack: &AdapterStack,
    layers: &[usize],
) -> Outcome {
    let parameters = stack.parameters();
    for part in ["weight", "bias"] {
        let name = format!("learned_source.{part}");
        let parameter = parameters.iter().find(|parameter| parameter.name == name);
        let gradient = parameter.ok_or("no learned source")?.tensor.grad(); // [layers, ..]
        for (i, layer) in layers.iter().enumerate() {
            let expected = &io[&format!("reft.{layer}.grad.{part}")];
            let scale = expected.abs().max();
            let (found, expected) = (gradient.select(0, i as i64) / &scale, expected / &scale);
            let what = format!("{what}: gradient of {name} at layer {layer}");
            assert_close(&what, &found, &expected, GRADIENTS);
        }
    }
    Ok(())
}

/// Every method can be made for every family, changes its logits, does not care for padding, and is the same after it was saved.
#[test]
fn every_method_works_on_every_family() -> Outcome {
    for case in cases()? {
        for method in METHODS.iter().filter(|method| method.name != "full") {
            let what = format!("{} on {}", method.name, case.family);
            tch::manual_seed(3);
            let stack = new_adapter(method.name, &MethodOptions::default(), &case.decoder)?;
            disturb(&stack, 5);
            let of = |stack: &AdapterStack, padding| {
                logits(&case.decoder, stack, &case.examples, padding)
            };
            let found = of(&stack, PaddingSide::Right)?;
            let largest = found.iter().map(|l| l.abs().max().double_value(&[])).fold(1.0, f64::max);
            let off = difference(&found, &of(&stack, PaddingSide::Left)?);
            assert!(off < 1e-5 * largest, "{what}: {off:e}");
        }
    }
    Ok(())
}
