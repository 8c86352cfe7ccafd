//! Heads of tasks against transformers, PEFT and TRL's loss: outputs, gradients, ten steps, and files. Files and generator:
//! `tests/oracle/classification`, `tools/oracle/make_classification.py`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use reft_core::{
    Householder, InterventionConfig, InterventionSet, InterventionTensors, Method, OrthonormalMap,
};
use reft_methods::{
    ReftAdapter, ReftConfig, adapter_files, is_adapter_file, load_trainable_adapters, read_head,
};
use reft_models::{
    Adapter, AdapterStack, BaseModel, Decoder, Model, Row, TaskHead, Weights, load_safetensors,
};
use reft_test_support::{oracle_text, tensors};
use reft_train::{
    Dataset, Error, Example, HeadObjective, IGNORE_INDEX, Learner, ScheduleKind, Sequence, Shuffle,
    Step, Told, TrainConfig, Trainer, head_outputs,
};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::tiny_llama::{TestResult, alone, oracle_path, relative_difference};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// A case of the oracle, and its parts here.
struct Case {
    name: String,
    told: Told,
    prefix: Option<&'static str>,
    model: Decoder,
    weights: Weights,
    examples: Vec<Example>,
    losses: Vec<f64>,
    expected: BTreeMap<String, Tensor>,
}

fn folder(model: &str) -> PathBuf {
    match model {
        "llama" => oracle_path("tiny_llama"),
        own => oracle_path("classification/models").join(own),
    }
}

fn sequence(ids: &Value) -> Outcome<Sequence> {
    let row = Row::prompt(serde_json::from_value(ids.clone())?);
    let labels = vec![IGNORE_INDEX; row.input_ids.len()];
    Ok(Sequence { row, labels })
}

/// A row of the oracle: a text and its label, or two replies to a prompt.
fn example(row: &Value) -> Outcome<Example> {
    let reply = |name: &str| -> Outcome<Sequence> {
        let [prompt, reply] = [&row["prompt"], &row[name]].map(|ids| ids.as_array().cloned());
        sequence(&[prompt.ok_or("prompt")?, reply.ok_or("reply")?].concat().into())
    };
    let sequences = match row.get("input_ids") {
        Some(ids) => vec![sequence(ids)?],
        None => vec![reply("chosen")?, reply("rejected")?],
    };
    Ok(Example { id: "row".to_owned(), sequences, value: row["label"].as_f64() })
}

fn cases() -> Outcome<Vec<Case>> {
    let oracle: Value = serde_json::from_str(&oracle_text("classification/classification.json")?)?;
    let case = |(name, case): (&String, &Value)| -> Outcome<Case> {
        let folder = folder(case["model"].as_str().ok_or("model")?);
        let model = Decoder::open(&folder, Kind::Float, Device::Cpu)?;
        let rows = case["rows"].as_array().ok_or("rows")?.iter();
        Ok(Case {
            name: name.clone(),
            told: match case["task"].as_str() {
                Some("classification") => Told::Class,
                Some("regression") => Told::Number,
                _ => Told::Reward,
            },
            prefix: model.description().prefix,
            weights: Weights::open(&folder)?,
            model,
            examples: rows.map(example).collect::<Outcome<_>>()?,
            losses: serde_json::from_value(case["losses"].clone())?,
            expected: tensors(&format!("classification/{name}.safetensors"))?,
        })
    };
    let cases = oracle["cases"].as_object().ok_or("cases")?;
    assert_eq!(cases.len(), 9);
    cases.iter().map(case).collect()
}

impl Case {
    fn is_loreft(&self) -> bool {
        self.name.ends_with("loreft")
    }

    /// Adapter and head before their first step.
    fn start(&self) -> Outcome<(Vec<Box<dyn Adapter>>, TaskHead)> {
        let (model, weights) = (&self.model, &self.weights);
        if !self.is_loreft() {
            let dir = oracle_path("classification").join(&self.name);
            let head = read_head(&dir, model, weights)?.ok_or("no head")?;
            return Ok((load_trainable_adapters(&dir, model)?, head));
        }
        let of_head = self.expected.iter().filter_map(|(name, tensor)| {
            let name = name.strip_prefix("start.").filter(|name| name.len() > 8)?;
            Some((name.to_owned(), tensor.shallow_clone()))
        });
        let of_head = of_head.filter(|(name, _)| !name.starts_with(['0', '1'])).collect();
        let head = TaskHead::of(model, weights, of_head, Vec::new())?;
        let start = |name: &str| self.expected[&format!("start.{name}")].shallow_clone();
        let of_layer = |layer: i64| -> InterventionTensors {
            let base = start(&format!("{layer}.base"));
            BTreeMap::from([
                ("rotation".to_owned(), base.narrow(1, 0, 2)),
                ("learned_source.weight".to_owned(), start(&format!("{layer}.weight"))),
                ("learned_source.bias".to_owned(), start(&format!("{layer}.bias"))),
            ])
        };
        let d = model.description().hidden_size;
        let config = ReftConfig {
            share_weights: true,
            ..ReftConfig::new(
                &InterventionConfig::new(Method::Loreft, 2),
                vec![0, 1],
                "f1+l1".parse()?,
                BaseModel::of(model.description(), "tiny"),
            )
        };
        let own = [of_layer(0), of_layer(1)];
        let set = InterventionSet::from_tensors(config.intervention(), d, &own, Device::Cpu)?;
        let set = set.into_trainable()?;
        // the columns that torch's parametrization puts beside the rotation's
        let map = Householder::on_base(&Tensor::stack(&[start("0.base"), start("1.base")], 0), 2);
        let mut state = set.state();
        let constants = map.constants().into_iter().chain([("raw", map.raw().detach())]);
        state.extend(constants.map(|(name, tensor)| (format!("rotation.{name}"), tensor)));
        set.load_state(&state)?;
        Ok((vec![Box::new(ReftAdapter::from_interventions(config, set)?)], head))
    }

    /// The oracle's tensor of a parameter, `grad` or `final`; `None` of rotations.
    fn of(&self, when: &str, parameter: &str) -> Option<Tensor> {
        let find = |name: String| self.expected.get(&format!("{when}.{name}"));
        let stacked = |part: &str| {
            let own = [0, 1].map(|layer| find(format!("{layer}.{part}")));
            Some(Tensor::stack(&[own[0]?, own[1]?], 0))
        };
        let of_peft = "base_model.model.";
        match (parameter.split_once('/'), parameter.strip_prefix(of_peft)) {
            (Some((_, of_head)), _) => find(of_head.to_owned())
                .or_else(|| find(format!("{of_peft}{of_head}")))
                .map(Tensor::shallow_clone),
            (None, Some(module)) => {
                let prefixed = self.prefix.map(|prefix| format!("{of_peft}{prefix}.{module}"));
                find(prefixed.unwrap_or_else(|| parameter.to_owned())).map(Tensor::shallow_clone)
            }
            (None, None) if parameter.starts_with("rotation") => None,
            (None, None) => stacked(parameter.rsplit('.').next()?),
        }
    }
}

#[test]
fn outputs_gradients_and_steps_are_those_of_transformers_and_peft() -> TestResult {
    let _alone = alone();
    for case in cases()? {
        let n = case.examples.len();
        let dataset = Dataset { train: case.examples.clone(), validation: Vec::new() };
        for (batch_size, reuse, by_block) in [(n, true, false), (n / 2, false, true)] {
            let (adapters, head) = case.start()?;
            let stack = AdapterStack::of_boxed(&adapters)?;
            let rows = case.examples.iter().flat_map(|example| &example.sequences);
            let rows: Vec<Row> = rows.map(|sequence| sequence.row.clone()).collect();
            let outputs = head_outputs(&head, &case.model, &stack, rows)?;
            let recorded = &case.expected["logits"];
            let off = relative_difference(&outputs.view_as(recorded), recorded);
            assert!(off < 1e-5, "{}: outputs differ by {off:e}", case.name); // f32

            let objective = HeadObjective::new(case.told, head)?;
            let learner = Learner::new(&case.model, &stack, &objective);
            let config = TrainConfig {
                max_steps: Some(10),
                batch_size,
                grad_accum: n / batch_size,
                lr: 1e-2,
                schedule: ScheduleKind::Constant,
                max_grad_norm: 0.0,
                weight_decay: 0.0,
                shuffle: Shuffle::None,
                reuse,
                checkpoint_activations: by_block,
                ..TrainConfig::default()
            };
            let mut trainer = Trainer::new(&learner, &dataset, config)?;
            for (step, expected) in case.losses.iter().enumerate() {
                let what = format!("{}, {batch_size} at once, step {step}", case.name);
                let batches = trainer.micro_batches(step)?;
                let Step::Taken(stats) = trainer.step(&batches)? else { panic!("overflow") };
                let off = (stats.loss - expected).abs() / expected.max(0.1);
                assert!(off < 2e-4, "{what}: {} {expected}", stats.loss); // f32, AdamW divides by small gradients
                for parameter in learner.parameters().iter().filter(|_| step == 0) {
                    let Some(expected) = case.of("grad", &parameter.name) else { continue };
                    assert!(expected.abs().max().double_value(&[]) > 1e-4, "{what}: no power");
                    let off = relative_difference(&parameter.tensor.grad(), &expected);
                    assert!(off < 2e-4, "{what}, {}: {off:e}", parameter.name); // f32
                }
            }
            let mut compared = 0;
            for parameter in learner.parameters() {
                let Some(expected) = case.of("final", &parameter.name) else { continue };
                let off = relative_difference(&parameter.tensor, &expected);
                assert!(off < 2e-3, "{}, {}: {off:e}", case.name, parameter.name); // f32, ten steps
                compared += 1;
            }
            let rotations = usize::from(case.is_loreft());
            assert_eq!(compared + rotations, learner.parameters().len(), "{}", case.name);
        }
    }
    Ok(())
}

#[test]
fn heads_are_saved_as_peft_saves_them_and_read_again() -> TestResult {
    let _alone = alone();
    for case in cases()? {
        let (mut adapters, head) = case.start()?;
        adapters[0].keep_head(&head);
        // the head is kept as it is when saved
        tch::no_grad(|| {
            for (_, tensor) in head.tensors() {
                let _moved = tensor.shallow_clone().g_add_scalar_(0.25);
            }
        });
        let dir = tempfile::tempdir()?;
        adapters[0].save(dir.path())?;
        let again = read_head(dir.path(), &case.model, &case.weights)?.ok_or("no head")?;
        assert_eq!(again.tensors(), head.tensors(), "{}", case.name);
        let n = if case.is_loreft() { 3 } else { 2 };
        assert_eq!(adapter_files(dir.path())?.len(), n, "{}", case.name);
        assert!(is_adapter_file("head.safetensors"));
        load_trainable_adapters(dir.path(), &case.model)?;
        if case.is_loreft() {
            continue;
        }
        let theirs = oracle_path("classification").join(&case.name);
        let shapes = |dir: &std::path::Path| -> Outcome<Vec<(String, Vec<i64>)>> {
            let tensors = load_safetensors(&dir.join("adapter_model.safetensors"))?;
            Ok(tensors.into_iter().map(|(name, tensor)| (name, tensor.size())).collect())
        };
        assert_eq!(shapes(dir.path())?, shapes(&theirs)?, "{}", case.name);
        let config = |dir: &std::path::Path| -> Outcome<Value> {
            let text = std::fs::read_to_string(dir.join("adapter_config.json"))?;
            Ok(serde_json::from_str(&text)?)
        };
        let (own, theirs) = (config(dir.path())?, config(&theirs)?);
        for field in ["task_type", "modules_to_save", "peft_type", "target_modules", "r"] {
            assert_eq!(own[field], theirs[field], "{}, {field}", case.name);
        }
    }
    Ok(())
}

/// A new head is saved, with its class names, to files that had none before.
#[test]
fn a_new_head_keeps_the_names_of_its_classes() -> TestResult {
    let _alone = alone();
    let names = || ["no", "perhaps", "yes"].map(str::to_owned).to_vec();
    for (model, adapter) in [
        (folder("llama"), "closeness/adapter/start"),
        (oracle_path("encoders/bert"), "encoders/bert/lora"),
    ] {
        let weights = Weights::open(&model)?;
        let model = Decoder::open(&model, Kind::Float, Device::Cpu)?;
        let mut adapters = load_trainable_adapters(&oracle_path(adapter), &model)?;
        let none = read_head(&oracle_path(adapter), &model, &weights)?;
        assert!(none.is_none());
        tch::manual_seed(4);
        let head = TaskHead::new(&model, &weights, 3, names())?;
        adapters[0].keep_head(&head);
        let dir = tempfile::tempdir()?;
        adapters[0].save(dir.path())?;
        let again = read_head(dir.path(), &model, &weights)?.ok_or("no head")?;
        assert_eq!((again.names(), again.n_outputs()), (&names()[..], 3));
        assert_eq!(again.tensors(), head.tensors());
        let text = std::fs::read_to_string(dir.path().join("adapter_config.json"))?;
        let config: Value = serde_json::from_str(&text)?;
        assert_eq!(config["task_type"], "SEQ_CLS");
        let before = adapters[0].state();
        let loaded = load_trainable_adapters(dir.path(), &model)?;
        assert_eq!(loaded[0].state(), before);
    }
    Ok(())
}

#[test]
fn heads_that_cannot_be_are_refused() -> TestResult {
    let _alone = alone();
    let refusal = |folder: &str, k: i64, names: &[&str], told: Told| -> Outcome<String> {
        let folder = oracle_path(folder);
        let model = Decoder::open(&folder, Kind::Float, Device::Cpu)?;
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let head = TaskHead::new(&model, &Weights::open(&folder)?, k, names);
        let refused = match head {
            Err(refused) => Some(refused.to_string()),
            Ok(head) => HeadObjective::new(told, head).err().map(|refused| refused.to_string()),
        };
        Ok(refused.ok_or("not refused")?)
    };
    for (folder, k, names, told, words) in [
        ("encoders/bert_mlm", 3, vec![], Told::Class, "no pooler.dense.weight"),
        ("encoders/modernbert", 3, vec![], Told::Class, "the head of modernbert is not computed"),
        ("tiny_llama", 3, vec!["a"], Told::Class, "3 outputs and 1 names"),
        ("tiny_llama", 1, vec![], Told::Class, "1 outputs, classification expects 2 or more"),
        ("tiny_llama", 2, vec![], Told::Number, "2 outputs, regression expects 1"),
    ] {
        let refused = refusal(folder, k, &names, told)?;
        assert!(refused.contains(words), "{refused}");
    }
    let case = cases()?.into_iter().find(|case| case.name == "llama_lora").ok_or("case")?;
    let (adapters, head) = case.start()?;
    let objective = HeadObjective::new(Told::Class, head)?;
    let learner = Learner::new(&case.model, &AdapterStack::of_boxed(&adapters)?, &objective);
    for value in [None, Some(3.0), Some(0.5), Some(-1.0)] {
        let example = Example { value, ..case.examples[0].clone() };
        let refused = learner.evaluate(&[example], 1, None);
        assert!(
            matches!(&refused, Err(Error::Refused { id, reason }) if id == "row" && reason.contains("a class from 0 to 2")),
            "{refused:?}"
        );
    }
    Ok(())
}
