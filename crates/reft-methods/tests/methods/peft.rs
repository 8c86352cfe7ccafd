//! Against PEFT: the folders of `tests/oracle` that hold adapter directories.

use std::collections::BTreeSet;
use std::path::Path;

use reft_methods::{
    ALPHA, AdapterFiles, AdapterSummary, ENCODER_HIDDEN_SIZE, METHODS, MethodOptions,
    N_VIRTUAL_TOKENS, RANK, TARGET_MODULES,
};
use reft_models::{PaddingSide, load_safetensors};
use reft_train::Example;
use serde_json::Value;

use crate::oracle::{
    Outcome, Tensors, assert_close, assert_gradients, assert_logits, assert_trajectory, difference,
    examples, json, load_adapter, logits, model, names_in, new_adapter, path, recorded, tensors,
    tiny_examples, tiny_llama,
};

/// Adapters with heads of tasks: their outputs are no logits, and the trainer's tests compare them with PEFT.
const WITH_HEADS: &str = "classification";

/// A directory that PEFT wrote, and PEFT's outputs with it.
pub struct Case {
    pub name: String,
    recording: Value, // model, lr, trajectory
    tensors: Tensors,
}

impl Case {
    /// Every adapter directory in a folder of `tests/oracle`, with its entries in `FOLDER.json` and `DIRECTORY.safetensors`.
    pub fn all() -> Outcome<Vec<Self>> {
        let (mut cases, mut methods) = (Vec::new(), BTreeSet::new());
        for folder in names_in(&path(""))?.into_iter().filter(|folder| folder != WITH_HEADS) {
            for name in names_in(&path(&folder))? {
                let name = format!("{folder}/{name}");
                if !path(&name).join("adapter_config.json").is_file() {
                    continue;
                }
                let recordings = json(&path(&folder).join(format!("{folder}.json")))?;
                let recording = recordings[&name[folder.len() + 1..]].clone();
                assert!(recording.is_object(), "nothing is recorded of {name}");
                let tensors = tensors(&format!("{name}.safetensors"))?;
                methods.insert(AdapterSummary::read(&path(&name))?.method);
                cases.push(Self { name, recording, tensors });
            }
        }
        for method in METHODS.iter().filter(|m| matches!(m.files, AdapterFiles::Peft(_))) {
            assert!(methods.contains(method.name), "{} has no recording by PEFT", method.name);
        }
        Ok(cases)
    }

    pub fn model(&self) -> &str {
        self.recording["model"].as_str().unwrap_or("tiny_llama")
    }

    pub fn examples(&self) -> Outcome<Vec<Example>> {
        match self.tensors.get("labels") {
            Some(labels) => examples(self.model(), labels),
            None => tiny_examples(),
        }
    }

    /// The directory holds the prefix, not the MLP that it came from.
    fn has_encoder(&self) -> bool {
        self.name == "peft_more/prefix_projection"
    }
}

#[test]
fn logits_of_directories_written_by_peft_equal_pefts() -> Outcome {
    for case in Case::all()? {
        let decoder = model(case.model())?;
        let adapter = load_adapter(&path(&case.name), &decoder)?;
        let examples = case.examples()?;
        let found = logits(&decoder, &adapter, &examples, PaddingSide::Right)?;
        assert_logits(&case.name, &found, &case.tensors["logits"]);
    }
    Ok(())
}

#[test]
fn gradients_and_twenty_steps_of_adamw_equal_pefts() -> Outcome {
    for case in Case::all()?.into_iter().filter(|case| !case.has_encoder()) {
        let decoder = model(case.model())?;
        let adapter = load_adapter(&path(&case.name), &decoder)?;
        let examples = case.examples()?;
        let start = recorded(&case.tensors, "init.");
        let state = adapter.state();
        assert_eq!(start.keys().collect::<Vec<_>>(), state.keys().collect::<Vec<_>>());
        for (name, tensor) in &start {
            assert_eq!(&state[name], tensor, "{}: {name}", case.name);
        }
        let gradients = recorded(&case.tensors, "grad.");
        let gradient = |name: &str| gradients[name].shallow_clone();
        assert_gradients(&case.name, &decoder, &adapter, &examples, &gradient)?;
        assert_trajectory(&case.name, &decoder, &adapter, &examples, &case.recording)?;
        if let Some(expected) = case.tensors.get("final_logits") {
            let found = logits(&decoder, &adapter, &examples, PaddingSide::Right)?;
            for (i, found) in found.iter().enumerate() {
                let expected = expected.select(0, i as i64).narrow(0, 0, found.size()[0]);
                // rounding of 20 steps, |logits| up to 12: measured 1e-4
                assert_close(&format!("{}: final logits", case.name), found, &expected, 1e-3);
            }
        }
    }
    Ok(())
}

#[test]
fn the_prefix_encoder_trains_as_pefts() -> Outcome {
    let decoder = tiny_llama()?;
    let name = "peft_more/prefix_projection";
    let tensors = tensors(&format!("{name}.safetensors"))?;
    let examples = tiny_examples()?;
    let options =
        MethodOptions::default().with(&N_VIRTUAL_TOKENS, 5).with(&ENCODER_HIDDEN_SIZE, 24);
    let adapter = new_adapter("prefix", &options, &decoder)?;
    adapter.load_state(&recorded(&tensors, "init."))?;
    let found = logits(&decoder, &adapter, &examples, PaddingSide::Right)?;
    assert_logits(name, &found, &tensors["logits"]);
    let gradients = recorded(&tensors, "grad.");
    let gradient = |name: &str| gradients[name].shallow_clone();
    assert_gradients(name, &decoder, &adapter, &examples, &gradient)?;

    // as in PEFT, the prefix itself is saved
    let dir = tempfile::tempdir()?;
    adapter.save(dir.path())?;
    let own = load_safetensors(&dir.path().join("adapter_model.safetensors"))?;
    let theirs = load_safetensors(&path(name).join("adapter_model.safetensors"))?;
    assert_eq!(own.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    // one product of 24 numbers around 1 in another order
    assert_close(name, &own["prompt_embeddings"], &theirs["prompt_embeddings"], 1e-6);
    let config = |dir: &Path| json(&dir.join("adapter_config.json"));
    assert_eq!(config(dir.path())?, config(&path(name))?);

    let recordings = json(&path("peft_more/peft_more.json"))?;
    assert_trajectory(name, &decoder, &adapter, &examples, &recordings["prefix_projection"])
}

#[test]
fn directories_written_back_equal_pefts_bit_for_bit() -> Outcome {
    for case in Case::all()? {
        let decoder = model(case.model())?;
        let theirs = path(&case.name);
        let dir = tempfile::tempdir()?;
        load_adapter(&theirs, &decoder)?.save(dir.path())?;
        let file = "adapter_model.safetensors";
        let (own, theirs_tensors) =
            (load_safetensors(&dir.path().join(file))?, load_safetensors(&theirs.join(file))?);
        assert_eq!(own, theirs_tensors, "{}", case.name);
        let file = "adapter_config.json";
        let (own, theirs) = (json(&dir.path().join(file))?, json(&theirs.join(file))?);
        assert_eq!(own, theirs, "{}", case.name);
        assert_eq!(own["lora_alpha"].is_f64(), theirs["lora_alpha"].is_f64(), "{}", case.name);
    }
    Ok(())
}

/// Changing an option of a recording changes the logits.
#[test]
fn options_of_the_configuration_are_not_decoration() -> Outcome {
    let changes: [(&str, &str, &str); 6] = [
        ("peft/lora_qv", "\"lora_alpha\": 8", "\"lora_alpha\": 9"),
        ("peft_more/dora", "\"use_dora\": true", "\"use_dora\": true, \"use_rslora\": true"),
        ("peft_more/rslora", "\"use_rslora\": true", "\"use_rslora\": false"),
        ("peft_more/rslora", "\"o_proj\": 5", "\"o_proj\": 6"),
        ("peft_more/rslora", "\"o_proj\": 5", "\"gate_proj\": 5"),
        ("peft_more/ia3", "\"init_ia3_weights\": true", "\"init_ia3_weights\": false"),
    ];
    let decoder = tiny_llama()?;
    for (case, from, to) in changes {
        let dir = tempfile::tempdir()?;
        let tensors = "adapter_model.safetensors";
        std::fs::copy(path(case).join(tensors), dir.path().join(tensors))?;
        let config = std::fs::read_to_string(path(case).join("adapter_config.json"))?;
        let changed =
            config.replacen(from, to, 1).replacen(",\n  \"use_rslora\": false\n", "\n", 1);
        assert!(config.contains(from), "{case}: {from}");
        std::fs::write(dir.path().join("adapter_config.json"), changed)?;
        let examples = tiny_examples()?;
        let run = |dir: &Path| {
            let adapter = load_adapter(dir, &decoder)?;
            logits(&decoder, &adapter, &examples, PaddingSide::Right)
        };
        let difference = difference(&run(dir.path())?, &run(&path(case))?);
        if case == "peft_more/ia3" {
            assert_eq!(difference, 0.0, "how the factors started is history");
        } else {
            assert!(difference > 1e-2, "{case}: {to} changes the logits by {difference:e}");
        }
    }
    Ok(())
}

#[test]
fn new_lora_starts_as_the_base_model_with_b_at_zero() -> Outcome {
    let decoder = tiny_llama()?;
    let options = MethodOptions::default().with(&RANK, 4).with(&ALPHA, 8.0);
    let options = options.with(&TARGET_MODULES, "all-linear");
    let adapter = new_adapter("lora", &options, &decoder)?;
    for (name, tensor) in adapter.state() {
        let is_zero = tensor.abs().max().double_value(&[]) == 0.0;
        assert_eq!(is_zero, name.ends_with("lora_B.weight"), "{name}");
    }
    Ok(())
}
