//! Control vectors of llama.cpp and repeng. Files and generator: `tests/oracle/control_vectors`, `tools/oracle/make_control_vectors.py`.

use std::collections::BTreeMap;

use reft_methods::{
    ALPHA, MethodOptions, POSITIONS, SteeringEdit, export_control_vector, import_control_vector,
    load_adapters, steering_adapter,
};
use reft_models::{AdapterStack, Component, ControlVector, Model, PaddingSide, Row};
use reft_test_support::{oracle, tensors};
use tch::{Kind, Tensor};

use crate::oracle::{Outcome, new_adapter, tiny_llama};

fn file(name: &str) -> std::path::PathBuf {
    oracle("control_vectors").join(format!("{name}.gguf"))
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn files_of_llama_cpp_and_repeng_steer_as_they_do_there() -> Outcome {
    let model = tiny_llama()?;
    let expected: BTreeMap<_, _> =
        tensors("control_vectors/logits.safetensors")?.into_iter().collect();
    let ids = Vec::<i64>::try_from(expected["input_ids"].view([-1]))?;
    for name in ["llama_cpp", "repeng"] {
        let vector = ControlVector::read(&file(name))?;
        assert_eq!(vector.model_hint.as_deref(), Some("llama"));
        let dir = tempfile::tempdir()?;
        import_control_vector(&vector, Some((model.description(), "tiny")), dir.path())?;
        let adapters = load_adapters(dir.path(), &model)?;
        let rows = vec![Row::prompt(ids.clone())];
        let stack = AdapterStack::of_boxed(&adapters)?;
        let steered = stack.logits(&model, rows.clone(), PaddingSide::Right)?.remove(0);
        let plain = AdapterStack::EMPTY.logits(&model, rows, PaddingSide::Right)?.remove(0);
        assert!(difference(&steered, &plain) > 0.1, "no power");
        let off = difference(&steered, &expected[name]);
        assert!(off < 1e-4, "{name}: {off:e}"); // f32, four layers

        // and back: the same directions, and llama.cpp's own layout byte for byte
        let written = dir.path().join("again.gguf");
        assert_eq!(export_control_vector(dir.path(), &written, None)?, Vec::<String>::new());
        let again = ControlVector::read(&written)?;
        assert_eq!(again.model_hint, vector.model_hint);
        assert_eq!(again.directions.len(), vector.directions.len());
        for (layer, v) in &vector.directions {
            assert_eq!(difference(&again.directions[layer], v), 0.0);
        }
    }
    Ok(())
}

#[test]
fn lobireft_at_all_positions_is_a_control_vector() -> Outcome {
    let model = tiny_llama()?;
    let options = MethodOptions::default()
        .with(&POSITIONS, "all")
        .with(&reft_methods::LAYERS, [1, 3])
        .with(&reft_methods::RANK, 3);
    let lobireft = new_adapter("lobireft", &options, &model)?;
    for mut parameter in lobireft.parameters() {
        let wave = Tensor::arange(parameter.tensor.numel() as i64, (Kind::Float, tch::Device::Cpu));
        let wave = (wave * 0.7).sin().view_as(&parameter.tensor);
        if parameter.name.ends_with("bias") {
            tch::no_grad(|| parameter.tensor.copy_(&wave));
        }
    }
    let (dir, imported) = (tempfile::tempdir()?, tempfile::tempdir()?);
    lobireft.save(dir.path())?;
    let written = imported.path().join("vector.gguf");
    let notes = export_control_vector(dir.path(), &written, None)?;
    assert!(notes[0].contains("the prompt's tokens alone"), "{notes:?}");
    let again = imported.path().join("adapter");
    std::fs::create_dir(&again)?;
    import_control_vector(&ControlVector::read(&written)?, None, &again)?;
    let adapters = load_adapters(&again, &model)?;
    let rows = vec![Row::prompt((3..12).collect())];
    let of = |stack: &AdapterStack| -> Outcome<Tensor> {
        Ok(stack.logits(&model, rows.clone(), PaddingSide::Right)?.remove(0))
    };
    let (expected, found) = (of(&lobireft)?, of(&AdapterStack::of_boxed(&adapters)?)?);
    assert!(difference(&expected, &of(&AdapterStack::EMPTY)?) > 0.1, "no power");
    assert!(difference(&expected, &found) < 1e-4, "{:e}", difference(&expected, &found)); // f32
    Ok(())
}

#[test]
fn what_depends_on_hidden_states_and_broken_files_are_refused_by_name() -> Outcome {
    let model = tiny_llama()?;
    let dir = tempfile::tempdir()?;
    let mut n = 0;
    let mut refused = |save: &dyn Fn(&std::path::Path) -> Outcome, words: &str| -> Outcome {
        n += 1;
        let own = dir.path().join(n.to_string());
        std::fs::create_dir(&own)?;
        save(&own)?;
        let error = export_control_vector(&own, &dir.path().join("out.gguf"), None).err();
        let said = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(said.contains(words), "{words:?} is not in {said:?}");
        Ok(())
    };
    let trained = |method: &'static str, options: MethodOptions| {
        let stack = new_adapter(method, &options, &model);
        move |own: &std::path::Path| -> Outcome {
            match &stack {
                Ok(stack) => Ok(stack.save(own)?),
                Err(error) => Err(error.to_string().into()),
            }
        }
    };
    refused(&trained("loreft", MethodOptions::default()), "loreft, which is no control vector")?;
    refused(&trained("lora", MethodOptions::default().with(&ALPHA, 8)), "lora, which is no")?;
    refused(&trained("lobireft", MethodOptions::default()), "edits the positions l1")?;
    let v = BTreeMap::from([(0usize, Tensor::ones([64], (Kind::Float, tch::Device::Cpu)))]);
    let steering = |layer: usize, component: Component, edit: SteeringEdit| {
        let v = BTreeMap::from([(layer, v[&0].shallow_clone())]);
        let adapter = steering_adapter(&v, component, edit, &model, "tiny");
        move |own: &std::path::Path| -> Outcome {
            match &adapter {
                Ok(adapter) => Ok(adapter.save(own)?),
                Err(error) => Err(error.to_string().into()),
            }
        }
    };
    let (block, mlp) = (Component::BlockOutput, Component::MlpOutput);
    refused(&steering(2, block, SteeringEdit::Remove), "takes a direction out")?;
    refused(&steering(2, mlp, SteeringEdit::Add), "adds to mlp_output")?;
    refused(&steering(0, block, SteeringEdit::Add), "no control vector to the output of block 0")?;

    let bytes = std::fs::read(file("llama_cpp"))?;
    let read = |bytes: &[u8]| -> Outcome<String> {
        let path = dir.path().join("broken.gguf");
        std::fs::write(&path, bytes)?;
        Ok(ControlVector::read(&path).err().map(|e| e.to_string()).unwrap_or_default())
    };
    let replaced = |from: &[u8], to: &[u8]| {
        let at = bytes.windows(from.len()).position(|own| own == from).unwrap_or(0);
        [&bytes[..at], to, &bytes[at + from.len()..]].concat()
    };
    assert!(read(&replaced(b"direction.2", b"direction.0"))?.contains("a tensor direction.0"));
    assert!(read(&replaced(b"direction.2", b"direktion.2"))?.contains("a tensor direktion.2"));
    assert!(read(&replaced(b"controlvector", b"controlsector"))?.contains("controlsector"));
    assert!(read(&bytes[..bytes.len() - 40])?.contains("cut short"));
    let tiny = ControlVector { model_hint: None, directions: BTreeMap::from([(9, v[&0].copy())]) };
    let out = tempfile::tempdir()?;
    let refused = import_control_vector(&tiny, Some((model.description(), "tiny")), out.path());
    assert!(refused.is_err_and(|error| error.to_string().contains("steers block 9")));
    Ok(())
}
