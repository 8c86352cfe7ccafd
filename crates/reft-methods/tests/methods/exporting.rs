//! Adapters in the files of other programs: `reft_saved` holds directories that pyreft 0.1.0 wrote.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use reft_core::{Activation, InterventionSet, PositionRule};
use reft_methods::{
    ACT_FN, ADD_BIAS, AdapterFiles, COMPONENT, Error, LAYERS, MAX_EDIT_NORM, METHODS,
    MethodOptions, POSITION_RULE, POSITIONS, PyreftImport, RANK, ReftAdapter, ReftConfig,
    SHARE_WEIGHTS, export_peft, export_pyreft, import_pyreft, load_torch_pickle, resolve,
};
use reft_models::{
    Adapter, AdapterStack, BaseModel, Component, Decoder, Model, PaddingSide, Row,
    load_safetensors, save_safetensors,
};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::declarations::small;
use crate::oracle::{
    LOGITS, Outcome, assert_close, difference, disturb, json, model, new_adapter, path, tiny_llama,
};

const SAVED: [&str; 6] = ["consreft", "direft", "lobireft", "loreft", "nodireft", "noreft"];

/// An adapter of ReFT, and its model.
struct Case {
    name: String,
    model: &'static str,
    method: &'static str,
    options: MethodOptions,
}

impl Case {
    fn new(method: &'static str, component: Component, share_weights: bool) -> Self {
        let tied = if share_weights { "tied" } else { "untied" };
        let options = MethodOptions::default()
            .with(&LAYERS, vec![1usize, 3])
            .with(&RANK, 3)
            .with(&POSITIONS, "f2+l3")
            .with(&COMPONENT, component)
            .with(&SHARE_WEIGHTS, share_weights);
        Self { name: format!("{method}-{component}-{tied}"), model: "tiny_llama", method, options }
    }

    fn called(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// Every class of pyreft tied and untied, every component, other families, and edge cases.
    fn all() -> Vec<Self> {
        let methods = ["loreft", "direft", "direft-orth", "noreft", "consreft", "lobireft"];
        let each = methods.into_iter().flat_map(|method| {
            [true, false].map(|tied| Self::new(method, Component::BlockOutput, tied))
        });
        let components = [Component::BlockInput, Component::AttentionOutput, Component::MlpOutput];
        let components = components.map(|component| Self::new("loreft", component, false));
        let plain = |method| Self::new(method, Component::BlockOutput, false);
        let with = |case: Self, change: fn(MethodOptions) -> MethodOptions| Self {
            options: change(case.options),
            ..case
        };
        let others = [
            with(plain("noreft"), |options| options.with(&ADD_BIAS, true)).called("bias"),
            with(plain("loreft"), |options| options.with(&POSITIONS, "l1")).called("last"),
            with(plain("direft-orth"), |options| options.with(&RANK, 64)).called("square"),
            with(plain("consreft"), |options| options.with(&POSITION_RULE, PositionRule::Pyreft))
                .called("pyrefts-rule"),
        ];
        let families = [("mistral", "families/mistral"), ("qwen2", "families/qwen2")];
        let families = families.into_iter().chain([("gemma2", "more_families/gemma2")]);
        let families = families.map(|(name, model)| {
            let case = with(plain("loreft"), |options| options.with(&LAYERS, vec![0usize, 1]));
            Self { model, ..case.called(name) }
        });
        each.chain(components).chain(others).chain(families).collect()
    }

    fn adapter(&self, model: &Decoder) -> Outcome<AdapterStack<'static>> {
        tch::manual_seed(5);
        let stack = new_adapter(self.method, &self.options, model)?;
        disturb(&stack, 2);
        Ok(stack)
    }
}

/// Prompts of 9, 6 and 3 tokens: the last is shorter than the positions.
fn rows() -> Vec<Row> {
    let row = |(n, prompt_length): (i64, usize)| {
        let input_ids = (0..n).map(|i| 3 + (i * 7 + n) % 50).collect();
        Row { input_ids, prompt_length, ..Row::default() }
    };
    [(12, 9), (8, 6), (5, 3)].into_iter().map(row).collect()
}

fn logits(model: &Decoder, adapter: &dyn Adapter) -> Outcome<Vec<Tensor>> {
    Ok(AdapterStack::one(adapter).logits(model, rows(), PaddingSide::Right)?)
}

/// Saves the adapter of a stack of one and reads it again.
fn saved(stack: &AdapterStack, dir: &Path) -> Outcome<ReftAdapter> {
    fs::create_dir_all(dir)?;
    stack.save(dir)?;
    Ok(ReftAdapter::load_alone(dir)?)
}

/// A directory of pyreft's, with the rule of positions, which its files do not hold.
fn imported(dir: &Path, own: &ReftAdapter, model: &Decoder) -> Outcome<ReftAdapter> {
    let positions = own.config().positions;
    let import = PyreftImport {
        positions,
        share_weights: positions.groups(own.config().share_weights).len() == 1,
        act_fn: Activation::Linear,
        base_model: Some(BaseModel::of(model.description(), "")),
    };
    let found = import_pyreft(dir, &import)?;
    let position_rule = own.config().position_rule;
    let config = ReftConfig { position_rule, ..found.config().clone() };
    let (intervention, d) = (config.intervention(), model.description().hidden_size);
    let tensors = found.interventions().tensors();
    let set = InterventionSet::from_tensors(intervention, d, &tensors, Device::Cpu)?;
    Ok(ReftAdapter::from_interventions(config, set)?)
}

/// The library's error message.
fn refused(exported: reft_methods::Result<impl std::fmt::Debug>) -> String {
    match exported {
        Err(error @ Error::NotExportable { .. }) => error.to_string(),
        other => format!("not refused: {other:?}"),
    }
}

#[test]
fn adapters_exported_to_pyreft_come_back() -> Outcome {
    for case in Case::all() {
        let (dir, model) = (tempfile::tempdir()?, model(case.model)?);
        let own = saved(&case.adapter(&model)?, &dir.path().join("own"))?;
        export_pyreft(&dir.path().join("own"), dir.path())?;
        let again = imported(dir.path(), &own, &model)?;
        assert_eq!(again.config().method, own.config().method, "{}", case.name);
        let (expected, found) = (logits(&model, &own)?, logits(&model, &again)?);
        let off = difference(&found, &expected);
        assert!(off < LOGITS, "{}: {off:e}", case.name); // f32 rounding: the rotation is converted to reflections
        let base = AdapterStack::EMPTY.logits(&model, rows(), PaddingSide::Right)?;
        assert!(difference(&base, &expected) > 1e-2, "{}: the test has no power", case.name);
    }
    Ok(())
}

#[test]
fn a_readme_names_the_base_model_without_its_path() -> Outcome {
    for (name, expected) in [
        ("/data/models/llama", "**llama**"),
        ("org/llama", "**org/llama**"),
        ("", "**its base model**"),
    ] {
        let (dir, model) = (tempfile::tempdir()?, tiny_llama()?);
        let options = MethodOptions::default().with(&RANK, 2);
        let adapter = resolve("loreft", &options, model.description())?.build(&model, name)?;
        adapter[0].save(dir.path())?;
        export_pyreft(dir.path(), dir.path())?;
        let readme = fs::read_to_string(dir.path().join("README.md"))?;
        assert!(readme.contains(expected) && !readme.contains("/data"), "{readme}");
    }
    Ok(())
}

/// Oracle: `reft_saved` holds the same adapters as saved by pyreft 0.1.0.
#[test]
fn exported_directories_are_those_that_pyreft_saves() -> Outcome {
    let import = PyreftImport {
        positions: "f2+l2".parse()?,
        share_weights: true,
        act_fn: Activation::Linear,
        base_model: None,
    };
    for name in SAVED {
        let (dir, theirs) = (tempfile::tempdir()?, path("reft_saved").join(name));
        let adapter = import_pyreft(&theirs, &import)?;
        let (own, export) = (dir.path().join("own"), dir.path().join("export"));
        fs::create_dir_all(&own)?;
        fs::create_dir_all(&export)?;
        adapter.save(&own)?;
        export_pyreft(&own, &export)?;
        let mut expected = json(&theirs.join("config.json"))?;
        expected["transformers_version"].take();
        let found = json(&export.join("config.json"))?;
        for (field, value) in expected.as_object().ok_or("no fields")? {
            assert_eq!(&found[field], value, "{name}: {field}");
        }
        for key in expected["sorted_keys"].as_array().ok_or("no keys")? {
            let file = format!("intkey_{}.bin", key.as_str().ok_or("no text")?);
            let (theirs, ours) =
                (load_torch_pickle(&theirs.join(&file))?, load_torch_pickle(&export.join(&file))?);
            let names = |tensors: &BTreeMap<String, Tensor>| -> Vec<String> {
                tensors.keys().cloned().collect()
            };
            assert_eq!(names(&ours), names(&theirs), "{name}");
            for (tensor, theirs) in theirs {
                let ours = &ours[&tensor];
                assert_eq!((ours.kind(), ours.size()), (theirs.kind(), theirs.size()), "{tensor}");
                // the remaining columns of a base may be any that complete it
                let columns = if tensor.ends_with(".base") { 4 } else { i64::MAX };
                let first = |x: &Tensor| match x.size()[..] {
                    [_, n] => x.narrow(1, 0, n.min(columns)),
                    _ => x.shallow_clone(),
                };
                assert_close(&format!("{name} {tensor}"), &first(ours), &first(&theirs), 1e-6);
            }
        }
        let import = import_pyreft(&export, &import)?;
        let base = load_torch_pickle(&export.join(format!(
            "intkey_{}.bin",
            expected["sorted_keys"][0].as_str().ok_or("no text")?
        )))?;
        if let Some(base) = base.get("rotate_layer.parametrizations.weight.0.base") {
            let eye = Tensor::eye(64, (Kind::Float, Device::Cpu));
            assert_close(name, &base.tr().matmul(base), &eye, 1e-5);
        }
        assert_eq!(import.config(), adapter.config(), "{name}");
    }
    Ok(())
}

#[test]
fn what_pyreft_would_take_for_something_else_is_refused() -> Outcome {
    let model = tiny_llama()?;
    let gemma = crate::oracle::model("more_families/gemma2")?;
    let options = |rank: i64| MethodOptions::default().with(&RANK, rank);
    for (method, options, model, complaint) in [
        ("loreft", options(2).with(&ACT_FN, "relu"), &model, "activation relu"),
        ("loreft", options(2).with(&COMPONENT, "mlp_output"), &gemma, "mlp_output of gemma2"),
        ("loreft", options(2).with(&MAX_EDIT_NORM, 0.5), &model, "max_edit_norm 0.5"),
        ("lora", options(2), &model, "use --to peft"),
        ("red", MethodOptions::default(), &model, "neither PEFT nor pyreft has the method"),
        ("full", MethodOptions::default(), &model, "use --merge"),
        ("loreft+lora", options(2), &model, "export each of its folders alone"),
    ] {
        let (dir, output) = (tempfile::tempdir()?, tempfile::tempdir()?);
        new_adapter(method, &options, model)?.save(dir.path())?;
        let says = refused(export_pyreft(dir.path(), output.path()));
        assert!(says.contains(complaint) && says.contains("pyreft's files"), "{method}: {says}");
        assert!(fs::read_dir(output.path())?.next().is_none());
    }
    // a constant source has no activation
    let (dir, output) = (tempfile::tempdir()?, tempfile::tempdir()?);
    new_adapter("lobireft", &options(2).with(&ACT_FN, "relu"), &model)?.save(dir.path())?;
    export_pyreft(dir.path(), output.path())?;
    Ok(())
}

#[test]
fn exports_to_peft_are_the_files_that_peft_reads() -> Outcome {
    let model = tiny_llama()?;
    for method in METHODS {
        let (dir, output) = (tempfile::tempdir()?, tempfile::tempdir()?);
        new_adapter(method.name, &small(method), &model)?.save(dir.path())?;
        fs::write(dir.path().join("metrics.jsonl"), "{}")?;
        let exported = export_peft(dir.path(), output.path());
        if !matches!(method.files, AdapterFiles::Peft(_)) {
            let says = refused(exported);
            let (is_reft, is_full) =
                (method.files == AdapterFiles::Reft, method.files == AdapterFiles::Weights);
            let advice = match (is_reft, is_full) {
                (true, _) => "use --to pyreft",
                (_, true) => "use --merge",
                _ => "neither PEFT nor pyreft",
            };
            assert!(says.contains(advice), "{}: {says}", method.name);
            continue;
        }
        exported?;
        let mut names: Vec<_> = fs::read_dir(output.path())?.flatten().collect();
        names.sort_by_key(|entry| entry.file_name());
        let names: Vec<_> = names.iter().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors"], "{}", method.name);
        for name in names {
            let (own, copy) = (dir.path().join(&name), output.path().join(&name));
            assert_eq!(fs::read(own)?, fs::read(copy)?, "{}", method.name);
        }
    }
    Ok(())
}

/// pyreft itself loads exported adapters, by the code of their README.md, and its saved adapters are read back. Needs a Python with pyreft
/// (see `tools/oracle/check_pyreft.py`): `PYREFT_PYTHON=venv/bin/python cargo test --workspace --test methods -- --ignored pyreft_loads`.
#[test]
#[ignore = "needs a Python with pyreft, named by PYREFT_PYTHON"]
fn pyreft_loads_what_is_exported_and_saves_what_is_read() -> Outcome {
    let python = std::env::var("PYREFT_PYTHON")?;
    let dir = tempfile::tempdir()?;
    let mut written = Vec::new();
    for case in Case::all() {
        let (folder, model) = (dir.path().join(&case.name), model(case.model)?);
        let own = saved(&case.adapter(&model)?, &folder.join("own"))?;
        fs::create_dir(folder.join("export"))?;
        export_pyreft(&folder.join("own"), &folder.join("export"))?;
        let row =
            |row: &Row| json!({"input_ids": row.input_ids, "prompt_length": row.prompt_length});
        let told = json!({"model": case.model, "rows": rows().iter().map(row).collect::<Vec<_>>()});
        fs::write(folder.join("case.json"), told.to_string())?;
        let found = logits(&model, &own)?.into_iter().enumerate();
        let named: Vec<_> = found.map(|(i, logits)| (format!("row{i}"), logits)).collect();
        save_safetensors(&folder.join("logits.safetensors"), &named, None)?;
        written.push((case.name, folder, model, own));
    }
    let script = path("../../tools/oracle/check_pyreft.py");
    let status = Command::new(python).arg(script).arg(path("")).arg(dir.path()).status()?;
    assert!(status.success());
    for (name, folder, model, own) in written {
        let changed = imported(&folder.join("changed"), &own, &model)
            .map_err(|error| format!("{name}: {error}"))?;
        let expected = load_safetensors(&folder.join("changed.safetensors"))?;
        let expected: Vec<Tensor> = expected.into_values().collect();
        let off = difference(&logits(&model, &changed)?, &expected);
        assert!(off < LOGITS, "{name}: what pyreft saved is read as {off:e} else");
    }
    Ok(())
}
