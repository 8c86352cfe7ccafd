//! Biases trained beside a head, against transformers and torch. Files and generator: `tests/oracle/bitfit`, `tools/oracle/make_bitfit.py`.

use reft_methods::{MethodOptions, load_trainable_adapters, read_head, resolve};
use reft_models::{AdapterStack, Decoder, Model, Row, TaskHead, Weights};
use reft_test_support::{oracle_text, tensors};
use reft_train::{
    Dataset, Example, HeadObjective, IGNORE_INDEX, Learner, ScheduleKind, Shuffle, Step, Told,
    TrainConfig, Trainer, head_outputs,
};
use serde_json::Value;
use tch::{Device, Kind};

use crate::tiny_llama::{TestResult, alone, oracle_path, relative_difference};

#[test]
fn trained_biases_are_those_of_transformers() -> TestResult {
    let _alone = alone();
    let oracle: Value = serde_json::from_str(&oracle_text("bitfit/bitfit.json")?)?;
    for (name, case) in oracle["models"].as_object().ok_or("models")? {
        let folder = oracle_path("classification/models").join(name);
        let open = || Decoder::open(&folder, Kind::Float, Device::Cpu);
        let (model, weights) = (open()?, Weights::open(&folder)?);
        let expected = tensors(&format!("bitfit/{name}.safetensors"))?;
        let start = expected.iter().filter_map(|(own, tensor)| {
            Some((own.strip_prefix("start.")?.to_owned(), tensor.shallow_clone()))
        });
        let head = TaskHead::of(&model, &weights, start.collect(), Vec::new())?;
        let method = resolve("bitfit", &MethodOptions::default(), model.description())?;
        let mut adapters = method.build(&model, "tiny")?;
        adapters[0].keep_head(&head);
        let example = |row: &Value| -> Result<Example, serde_json::Error> {
            let row_of = Row::prompt(serde_json::from_value(row["input_ids"].clone())?);
            let labels = vec![IGNORE_INDEX; row_of.input_ids.len()];
            Ok(Example { value: row["label"].as_f64(), ..Example::of("row", row_of, labels) })
        };
        let rows = case["rows"].as_array().ok_or("rows")?.iter();
        let train = rows.map(example).collect::<Result<Vec<_>, _>>()?;
        let rows = || train.iter().map(|example| example.row().clone()).collect();
        let stack = AdapterStack::of_boxed(&adapters)?;
        let off =
            relative_difference(&head_outputs(&head, &model, &stack, rows())?, &expected["logits"]);
        assert!(off < 1e-5, "{name}: outputs differ by {off:e}"); // f32
        let objective = HeadObjective::new(Told::Class, head.clone())?;
        let learner = Learner::new(&model, &stack, &objective);
        let config = TrainConfig {
            max_steps: Some(10),
            batch_size: train.len(),
            lr: oracle["lr"].as_f64().ok_or("lr")?,
            schedule: ScheduleKind::Constant,
            max_grad_norm: 0.0,
            shuffle: Shuffle::None,
            ..TrainConfig::default()
        };
        let dataset = Dataset { train: train.clone(), validation: Vec::new() };
        let mut trainer = Trainer::new(&learner, &dataset, config)?;
        // a bias of keys moves no softmax: its gradient is noise
        let of = |when: &str, parameter: &str| {
            let own = parameter.rsplit('/').next().unwrap_or_default();
            let own = own.strip_prefix(&format!("{name}.")).unwrap_or(own);
            let found = expected.get(&format!("{when}.{own}"));
            assert!(found.is_some() || own.ends_with("key.bias"), "{name}: {when}.{own}");
            found.filter(|_| !own.ends_with("key.bias"))
        };
        let losses: Vec<f64> = serde_json::from_value(case["losses"].clone())?;
        for (step, expected) in losses.iter().enumerate() {
            let batches = trainer.micro_batches(step)?;
            let Step::Taken(stats) = trainer.step(&batches)? else { panic!("overflow") };
            let off = (stats.loss - expected).abs() / expected.max(0.1);
            assert!(off < 2e-4, "{name}, step {step}: {} {expected}", stats.loss); // f32, AdamW divides by small gradients
            for parameter in learner.parameters().iter().filter(|_| step == 0) {
                let Some(expected) = of("grad", &parameter.name) else { continue };
                assert!(expected.abs().max().double_value(&[]) > 1e-4, "{}", parameter.name);
                let off = relative_difference(&parameter.tensor.grad(), expected);
                assert!(off < 2e-4, "{name}, {}: {off:e}", parameter.name); // f32
            }
        }
        let trained = expected.keys().filter(|own| own.starts_with("grad."));
        assert_eq!(learner.parameters().len(), trained.count(), "{name}");
        for parameter in learner.parameters() {
            let Some(expected) = of("final", &parameter.name) else { continue };
            let off = relative_difference(&parameter.tensor, expected);
            assert!(off < 2e-3, "{name}, {}: {off:e}", parameter.name); // f32, ten steps
        }
        // saved and read into a fresh model
        let dir = tempfile::tempdir()?;
        stack.save(dir.path())?;
        let trained = head_outputs(&head, &model, &stack, rows())?;
        let fresh = open()?;
        let head = read_head(dir.path(), &fresh, &weights)?.ok_or("no head")?;
        let again = load_trainable_adapters(dir.path(), &fresh)?;
        let again = AdapterStack::of_boxed(&again)?;
        assert_eq!(head_outputs(&head, &fresh, &again, rows())?, trained, "{name}");
        assert_eq!(again.state(), stack.state(), "{name}");
    }
    Ok(())
}
