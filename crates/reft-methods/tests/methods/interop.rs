//! Files as current versions of transformers and PEFT write them: `tests/oracle/interop`.

use std::collections::BTreeMap;
use std::path::Path;

use reft_core::Activation;
use reft_methods::{
    AdapterFiles, AdapterSummary, Error, METHODS, Merging, PEFT_FILES, PyreftImport,
    check_mergeable, export_model, import_pyreft, load_adapters, merge_adapter,
};
use reft_models::{
    AdapterStack, Decoder, Fate, PaddingSide, Row, load_safetensors, save_safetensors,
};
use reft_train::Example;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

use crate::declarations::small;
use crate::oracle::{
    Outcome, assert_close, difference, disturb, json, load_adapter, logits, names_in, new_adapter,
    path, tensors,
};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

/// Size of a file of weights in bytes: these models need several.
const SHARD: u64 = 10_000;

/// The sums of other implementations in another order, in f32; logits are up to 6.
const TOLERANCE: f64 = 2e-5;

/// A case of `cases.json`: its model's and its adapter's directory, with its edits.
struct Case {
    name: String,
    dir: TempDir,
    has_adapter: bool,
}

impl Case {
    fn new(name: &str, case: &Value) -> Outcome<Self> {
        let (dir, root) = (tempfile::tempdir()?, path("interop"));
        let model = root.join("models").join(case["model"].as_str().ok_or("no model")?);
        copy_edited(&model, &dir.path().join("model"), "config.json", &case["edit"])?;
        change_tensors(&dir.path().join("model/model.safetensors"), &case["tensors"])?;
        if let Some(adapter) = case["adapter"].as_str() {
            let adapter = root.join("adapters").join(adapter);
            copy_edited(&adapter, &dir.path().join("adapter"), CONFIG, &case["adapter_edit"])?;
        }
        Ok(Self { name: name.to_owned(), dir, has_adapter: case["adapter"].is_string() })
    }

    fn all() -> Outcome<Vec<Self>> {
        let cases: Map<String, Value> = serde_json::from_value(json(&path("interop/cases.json"))?)?;
        cases.iter().map(|(name, case)| Self::new(name, case)).collect()
    }

    fn model(&self) -> Outcome<Decoder> {
        Ok(Decoder::open(&self.dir.path().join("model"), Kind::Float, Device::Cpu)?)
    }

    fn logits(&self) -> Outcome<Vec<Tensor>> {
        let model = self.model()?;
        let adapter = match self.has_adapter {
            true => load_adapter(&self.dir.path().join("adapter"), &model)?,
            false => AdapterStack::EMPTY,
        };
        own_logits(&model, &adapter)
    }
}

/// The recorded rows.
fn examples() -> Outcome<Vec<Example>> {
    let rows: BTreeMap<String, Vec<Vec<i64>>> =
        serde_json::from_value(json(&path("interop/input.json"))?)?;
    let example = |(i, input_ids): (usize, &Vec<i64>)| {
        let labels = vec![-100; input_ids.len()];
        Example::of(i.to_string(), Row::prompt(input_ids.clone()), labels)
    };
    Ok(rows["input_ids"].iter().enumerate().map(example).collect())
}

/// Logits of the rows' own tokens, without virtual ones.
fn own_logits(model: &Decoder, adapter: &AdapterStack) -> Outcome<Vec<Tensor>> {
    let examples = examples()?;
    let found = logits(model, adapter, &examples, PaddingSide::Right)?;
    let own = |(found, example): (Tensor, &Example)| {
        let length = example.row().input_ids.len() as i64;
        found.narrow(0, found.size()[0] - length, length)
    };
    Ok(found.into_iter().zip(&examples).map(own).collect())
}

/// Copies a directory and sets fields in one of its files; a null in `edit` removes the field.
fn copy_edited(from: &Path, to: &Path, file: &str, edit: &Value) -> Outcome {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    let mut data: Map<String, Value> = serde_json::from_value(json(&to.join(file))?)?;
    for (name, value) in edit.as_object().into_iter().flatten() {
        match value {
            Value::Null => drop(data.remove(name)),
            value => drop(data.insert(name.clone(), value.clone())),
        }
    }
    Ok(std::fs::write(to.join(file), serde_json::to_string(&data)?)?)
}

/// The change that a case makes to its model's weights.
fn change_tensors(file: &Path, what: &Value) -> Outcome {
    if what.is_null() {
        return Ok(());
    }
    let pairs = |key: &str| -> Outcome<Vec<(String, String)>> {
        Ok(serde_json::from_value(what.get(key).cloned().unwrap_or_else(|| json!([])))?)
    };
    let mut tensors = load_safetensors(file)?;
    for (old, new) in pairs("rename")? {
        let renamed = |(name, tensor): (String, Tensor)| match name.strip_prefix(&old) {
            Some(rest) => (format!("{new}{rest}"), tensor),
            None => (name, tensor),
        };
        tensors = tensors.into_iter().map(renamed).collect();
    }
    for (old, new) in pairs("copy")? {
        tensors.insert(new, tensors[&old].copy());
    }
    if let Some(n) = what["repeat_kv"].as_i64() {
        for (name, tensor) in &mut tensors {
            if name.contains("k_proj") || name.contains("v_proj") {
                *tensor = tensor.repeat([n, 1]);
            }
        }
    }
    for (name, of) in what["add"].as_object().into_iter().flatten() {
        let (shape, value): (Vec<i64>, f64) = serde_json::from_value(of.clone())?;
        tensors.insert(name.clone(), Tensor::full(shape, value, (Kind::Float, Device::Cpu)));
    }
    Ok(save_safetensors(file, &tensors.into_iter().collect::<Vec<_>>(), None)?)
}

#[test]
fn files_of_current_versions_give_the_logits_that_the_references_give() -> Outcome {
    let truth = tensors("interop/truth.safetensors")?;
    let cases = Case::all()?;
    assert_eq!(cases.len(), truth.len());
    for case in cases {
        for (i, found) in case.logits()?.iter().enumerate() {
            let expected = truth[&case.name].select(0, i as i64).narrow(0, 0, found.size()[0]);
            assert_close(&format!("{}: row {i}", case.name), found, &expected, TOLERANCE);
        }
    }
    Ok(())
}

#[test]
fn adapters_of_current_versions_are_written_back_as_they_were() -> Outcome {
    for name in names_in(&path("interop/adapters"))? {
        let theirs = path("interop/adapters").join(&name);
        let model = name.split_once('-').map_or(&name[..], |(model, _)| model);
        let model = path("interop/models").join(model);
        let model = Decoder::open(&model, Kind::Float, Device::Cpu)?;
        let dir = tempfile::tempdir()?;
        load_adapter(&theirs, &model)?.save(dir.path())?;
        let (own, theirs_tensors) = (
            load_safetensors(&dir.path().join(TENSORS))?,
            load_safetensors(&theirs.join(TENSORS))?,
        );
        assert_eq!(own, theirs_tensors, "{name}");
        let (own, mut theirs) = (json(&dir.path().join(CONFIG))?, json(&theirs.join(CONFIG))?);
        for field in ["layers_to_transform", "layers_pattern"] {
            if theirs[field].is_number() || theirs[field].is_string() {
                theirs[field] = json!([theirs[field]]); // PEFT reads both
            }
        }
        assert_eq!(own, theirs, "{name}");
    }
    Ok(())
}

/// The adapter of a case with fields of its configuration changed.
fn edited(adapter: &str, edit: &Value) -> Outcome<Case> {
    let model = adapter.split_once('-').map_or(adapter, |(model, _)| model);
    Case::new(adapter, &json!({ "model": model, "adapter": adapter, "adapter_edit": edit }))
}

#[test]
fn fields_that_cannot_be_applied_are_refused_with_what_to_do() -> Outcome {
    let convert = "path_initial_model_for_weight_conversion";
    for (adapter, edit, complaint) in [
        ("llama-lora", json!({"rank_pattern": {"w_proj": 4}}), "\"w_proj\", which is none"),
        ("llama-lora", json!({"alpha_pattern": {"^q_proj": 4}}), "\"^q_proj\", which is none"),
        ("llama-lora", json!({"exclude_modules": ".*"}), "exclude_modules .* means every one"),
        ("llama-lora", json!({"layers_to_transform": 3}), "layer 3, the model has 3 layers"),
        (
            "llama-lora",
            json!({"layers_to_transform": [1], "layers_pattern": "blocks"}),
            "layers_pattern blocks means no layer",
        ),
        ("llama-lora", json!({"target_modules": ["w_proj"]}), "target_modules w_proj means no"),
        ("llama_biases-lora", json!({"bias": "all"}), "bias is \"all\""),
        ("llama-lora", json!({"bias": "some"}), "bias is \"some\""),
        ("llama-lora", json!({"init_lora_weights": "pissa"}), convert),
        ("llama-lora", json!({"init_lora_weights": "pissa_niter_4"}), convert),
        ("llama-lora", json!({"init_lora_weights": "olora"}), convert),
        ("llama-lora", json!({"init_lora_weights": "corda"}), convert),
        ("llama-lora", json!({"init_lora_weights": "loftq"}), convert),
        ("llama-lora", json!({"alora_invocation_tokens": [1, 2]}), "alora_invocation_tokens"),
        ("llama-lora", json!({"kasa_config": {"beta": 1}}), "kasa_config"),
        ("llama-lora", json!({"trainable_token_indices": [1]}), "trainable_token_indices"),
        ("llama-lora", json!({"target_parameters": ["w"]}), "target_parameters"),
        ("llama-lora", json!({"modules_to_save": ["lm_head"]}), "modules_to_save"),
        ("llama-lora", json!({"use_of_tomorrow": 1}), "use_of_tomorrow is 1, a field that"),
        (
            "llama-ia3",
            json!({"exclude_modules": ["k_proj", "w_proj", "v_proj", "down_proj"]}),
            "every",
        ),
        ("llama-road", json!({"exclude_modules": ["o_proj"]}), "exclude_modules"),
        ("llama-prefix", json!({"modules_to_save": ["lm_head"]}), "modules_to_save"),
        ("llama-prompt", json!({"num_transformer_submodules": 2}), "num_transformer_submodules"),
        ("llama-lora", json!({"peft_type": "VERA"}), "peft_type VERA, which is not computed here"),
        ("llama-lora", json!({"peft_type": "LOHA"}), "peft_type LOHA, which is not computed here"),
    ] {
        let refused = edited(adapter, &edit)?.logits().err().ok_or("accepted")?.to_string();
        assert!(refused.contains(complaint), "{adapter} with {edit}: {refused}");
    }
    Ok(())
}

#[test]
fn fields_that_nobody_knows_are_refused_in_every_type_of_adapter() -> Outcome {
    for adapter in ["llama-lora", "llama-ia3", "llama-road", "llama-prefix", "llama-prompt"] {
        let refused = edited(adapter, &json!({"twist": 0.5}))?.logits().err().ok_or("accepted")?;
        assert!(refused.to_string().contains("twist is 0.5"), "{adapter}: {refused}");
        edited(adapter, &json!({"twist": [], "turn": false}))?.logits()?;
    }
    Ok(())
}

/// Fields that the tables call applied must be read: a wrong value is an error.
#[test]
fn fields_that_are_said_to_be_applied_are_read() -> Outcome {
    let adapters = ["llama-lora", "llama-ia3", "llama-road", "llama-prefix", "llama-prompt"];
    for (fields, adapter) in PEFT_FILES.iter().zip(adapters) {
        let applied = fields.groups.iter().copied().flatten();
        for name in applied.filter(|f| matches!(f.fate, Fate::Applied)).flat_map(|f| f.names) {
            let mut edit = json!({});
            edit[*name] = json!([{ "odd": [] }]);
            assert!(edited(adapter, &edit)?.logits().is_err(), "{adapter}: {name} is not read");
        }
    }
    Ok(())
}

#[test]
fn modules_are_taken_from_the_tensors_where_the_configuration_does_not_tell_them() -> Outcome {
    for adapter in ["llama-lora", "llama-lora_excluding_names", "llama-ia3", "llama-road"] {
        let told = edited(adapter, &json!({}))?.logits()?;
        for unusual in [Value::Null, json!([]), json!(r"(?P<q>q)_proj|(?R)[")] {
            let edit = json!({ "target_modules": unusual });
            let found = edited(adapter, &edit)?.logits()?;
            assert_eq!(difference(&found, &told), 0.0, "{adapter} with {edit}");
        }
    }
    Ok(())
}

#[test]
fn adapters_that_started_as_lora_ga_are_not_merged() -> Outcome {
    let case = edited("llama-lora", &json!({"init_lora_weights": "lora_ga"}))?;
    let dir = case.dir.path().join("adapter");
    let refused = merge_adapter(&dir, &case.model()?).err().ok_or("merged")?.to_string();
    assert!(refused.contains("changed the base model's weights"), "{refused}");
    assert!(check_mergeable(&dir).is_err());
    check_mergeable(&path("interop/adapters/llama-lora"))?;
    Ok(())
}

#[test]
fn heads_of_classification_are_kept_and_change_no_logits() -> Outcome {
    let case = edited("llama-lora_classifier", &json!({}))?;
    let dir = case.dir.path().join("adapter");
    let file = dir.join(TENSORS);
    let head = "base_model.model.score.weight";
    let mut tensors = load_safetensors(&file)?;
    let with_head = case.logits()?;
    assert!(tensors.remove(head).is_some());
    save_safetensors(&file, &tensors.into_iter().collect::<Vec<_>>(), None)?;
    assert_eq!(difference(&case.logits()?, &with_head), 0.0);
    // a head that the configuration does not name is a tensor too many
    let unnamed = edited("llama-lora_classifier", &json!({"modules_to_save": null}))?;
    let refused = unnamed.logits().err().ok_or("accepted")?.to_string();
    assert!(refused.contains("score"), "{refused}");
    Ok(())
}

#[test]
fn directories_that_hold_an_adapter_elsewhere_or_pickled_say_so() -> Outcome {
    let case = edited("llama-lora", &json!({}))?;
    let refused = |dir: &Path| -> Outcome<String> {
        let refused = load_adapters(dir, &case.model()?).err().ok_or("accepted")?;
        assert!(matches!(refused, Error::NotAnAdapter { .. }), "{refused}");
        assert!(AdapterSummary::read(dir).is_err());
        Ok(refused.to_string())
    };
    let above = refused(case.dir.path())?;
    assert!(above.contains("there is one in") && above.contains("/adapter"), "{above}");
    let dir = case.dir.path().join("adapter");
    std::fs::rename(dir.join(TENSORS), dir.join("adapter_model.bin"))?;
    let pickled = refused(&dir)?;
    assert!(pickled.contains("adapter_model.bin, which is a pickle"), "{pickled}");
    Ok(())
}

#[test]
fn weights_that_are_missing_are_told_by_their_pattern() -> Outcome {
    let case = Case::new("llama", &json!({"model": "llama"}))?;
    let file = case.dir.path().join("model/model.safetensors");
    let mut tensors = load_safetensors(&file)?;
    tensors.retain(|name, _| !name.contains("up_proj"));
    save_safetensors(&file, &tensors.into_iter().collect::<Vec<_>>(), None)?;
    let refused = case.model().err().ok_or("accepted")?.to_string();
    assert!(refused.contains("model.layers.*.mlp.up_proj.weight"), "{refused}");
    assert!(refused.lines().count() <= 4, "{refused}");
    Ok(())
}

/// PEFT itself reads adapters written here, and transformers reads merged models. Needs a Python that has both (see
/// `tools/oracle/make_interop.py`): `PEFT_PYTHON=venv/bin/python cargo test --workspace --test methods -- --ignored peft_reads`.
#[test]
#[ignore = "needs a Python with PEFT, named by PEFT_PYTHON"]
fn peft_reads_adapters_and_merged_models_written_here_and_computes_the_same() -> Outcome {
    let python = std::env::var("PEFT_PYTHON")?;
    let dir = tempfile::tempdir()?;
    for name in ["llama", "mistral", "qwen3"] {
        let base = path("interop/models").join(name);
        let by_peft = METHODS.iter().filter(|m| matches!(m.files, AdapterFiles::Peft(_)));
        for (i, method) in by_peft.enumerate() {
            let model = Decoder::open(&base, Kind::Float, Device::Cpu)?;
            let adapter = new_adapter(method.name, &small(method), &model)?;
            disturb(&adapter, i as i64);
            let own = dir.path().join(name).join(method.name);
            std::fs::create_dir_all(&own)?;
            adapter.save(&own)?;
            let found = own_logits(&model, &adapter)?.into_iter().enumerate();
            let rows: Vec<_> = found.map(|(i, logits)| (format!("row{i}"), logits)).collect();
            save_safetensors(&own.join("logits.safetensors"), &rows, None)?;
            if method.merging == Merging::IntoWeights {
                merge_adapter(&own, &model)?;
                export_model(&model, &base, &own.join("merged"), &[], SHARD)?;
            }
        }
    }
    let script = path("../../tools/oracle/check_peft.py");
    let status =
        std::process::Command::new(python).arg(script).arg(path("")).arg(dir.path()).status()?;
    assert!(status.success());
    Ok(())
}

#[test]
fn fields_of_pyrefts_configuration_are_applied_or_refused() -> Outcome {
    let import = PyreftImport {
        positions: "f2+l2".parse()?,
        share_weights: true,
        act_fn: Activation::Linear,
        base_model: None,
    };
    let partition = {
        let mut representation =
            json(&path("reft_saved/loreft/config.json"))?["representations"].take();
        representation[0][7] = json!([[0, 2], [2, 4]]);
        representation
    };
    for (field, value, complaint) in [
        ("mode", json!("serial"), Some("mode is \"serial\"")),
        ("intervention_constant_sources", json!([true, false]), Some("intervention_constant")),
        ("representations", partition, Some("[[0,2],[2,4]], expected null")),
        ("fast_mode_of_tomorrow", json!(true), Some("fast_mode_of_tomorrow is true")),
        ("transformers_version", json!("5.24.0"), None),
    ] {
        let (dir, mut edit) = (tempfile::tempdir()?, json!({}));
        edit[field] = value;
        let own = dir.path().join("saved");
        copy_edited(&path("reft_saved/loreft"), &own, "config.json", &edit)?;
        let refused = import_pyreft(&own, &import).err().map(|error| error.to_string());
        let is_right = match (complaint, &refused) {
            (Some(complaint), Some(refused)) => refused.contains(complaint),
            (complaint, refused) => complaint.is_none() && refused.is_none(),
        };
        assert!(is_right, "{edit}: {refused:?}");
    }
    Ok(())
}
