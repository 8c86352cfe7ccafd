//! ReFT-r1 and RePS against their authors' formulas in torch: losses, gradients and ten steps. Files and generator:
//! `tests/oracle/steering`, `tools/oracle/make_steering.py`.

use std::collections::BTreeMap;

use reft_methods::{SteeringEdit, load_trainable_adapters, steering_adapter};
use reft_models::{
    Adapter, AdapterStack, Component, Decoder, Dose, Layout, Mode, Model, PaddingSide, Place, Site,
    TokenAt, collect,
};
use reft_test_support::{oracle_text, tensors};
use reft_train::{
    Content, Dataset, LabelledText, Learner, Record, ScheduleKind, Shuffle, Step, TrainConfig,
    Trainer,
};
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::pairs::{ENCODING, Outcome, ids, ingredients, options, pairs};
use crate::tiny_llama::{TestResult, alone, decoder, oracle_path, relative_difference};

fn rows<'v>(oracle: &'v Value, name: &str) -> Outcome<&'v Vec<Value>> {
    Ok(oracle[name].as_array().ok_or("rows")?)
}

fn texts(oracle: &Value) -> Outcome<Vec<Record>> {
    let record = |row: &Value| -> Outcome<Record> {
        let text = LabelledText::Tokens { input_ids: ids(&row["input_ids"])?, token_types: None };
        let label = row["concept"].to_string();
        Ok(Record::new("text", Content::Labelled { text, label }))
    };
    rows(oracle, "texts")?.iter().map(record).collect()
}

fn steering(
    decoder: &Decoder,
    expected: &BTreeMap<String, Tensor>,
    case: &Value,
) -> Outcome<Box<dyn Adapter>> {
    let start = |layer: i64| {
        let name = format!("init.layers.{layer}.block_output.direction");
        (layer as usize, expected[&name].shallow_clone())
    };
    let directions = ids(&case["layers"])?.into_iter().map(start).collect();
    let (component, edit) = (Component::BlockOutput, SteeringEdit::Add);
    Ok(steering_adapter(&directions, component, edit, decoder, "tiny")?)
}

#[test]
fn losses_gradients_and_steps_are_the_authors() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let oracle: Value = serde_json::from_str(&oracle_text("steering/steering.json")?)?;
    let cases = oracle["cases"].as_object().ok_or("cases")?;
    assert_eq!(cases.len(), 7);
    for (name, case) in cases {
        let expected: BTreeMap<_, _> =
            tensors(&format!("steering/{name}.safetensors"))?.into_iter().collect();
        let options = options(case)?;
        let train = match options.objective.prefers() {
            true => pairs(&oracle)?,
            false => options.objective.examples(&texts(&oracle)?, &ENCODING, None)?,
        };
        let (n, dataset) = (train.len(), Dataset { train, validation: Vec::new() });
        for (batch_size, reuse) in [(n, true), (1, false)] {
            let adapters = match case.get("layers") {
                Some(_) => vec![steering(&decoder, &expected, case)?],
                None => load_trainable_adapters(&oracle_path("closeness/adapter/start"), &decoder)?,
            };
            let run = ingredients(&options, &adapters, &[])?;
            let objective = (options.objective.build)(&run)?;
            let learner = Learner::new(&decoder, &run.stack, &*objective);
            let config = TrainConfig {
                epochs: Some(10),
                batch_size,
                grad_accum: n / batch_size,
                lr: case["lr"].as_f64().ok_or("lr")?,
                schedule: ScheduleKind::Constant,
                max_grad_norm: 0.0,
                shuffle: Shuffle::None,
                reuse,
                ..TrainConfig::default()
            };
            let mut trainer = Trainer::new(&learner, &dataset, config)?;
            for (step, expected_step) in rows(case, "steps")?.iter().enumerate() {
                let what = format!("{name}, {batch_size} examples at once, step {step}");
                let loss = expected_step["loss"].as_f64().ok_or("loss")?;
                let batches = trainer.micro_batches(step)?;
                if step == 0 && batch_size == n {
                    let sums = learner.sums(&batches[0], Mode::Train, None)?;
                    let counts = objective.counts(&batches[0]);
                    let parts = sums.iter().zip(objective.terms()).zip(counts);
                    let parts = parts.filter(|((_, term), _)| term.weight > 0.0);
                    let whole = parts.map(|((sum, term), n)| sum * (term.weight / n));
                    whole.reduce(|a, b| a + b).ok_or("terms")?.backward();
                    for mut parameter in learner.parameters() {
                        let expected = &expected[&format!("grad.{}", parameter.name)];
                        assert!(expected.abs().max().double_value(&[]) > 1e-3, "no power");
                        let difference = relative_difference(&parameter.tensor.grad(), expected);
                        assert!(difference < 2e-4, "{what}, {}: {difference:e}", parameter.name); // f32
                        parameter.tensor.zero_grad();
                    }
                }
                let Step::Taken(stats) = trainer.step(&batches)? else { panic!("overflow") };
                // f32, four layers, and AdamW that divides by small gradients
                let difference = (stats.loss - loss).abs();
                assert!(difference < 2e-4 * loss, "{what}: {} {loss}", stats.loss);
                for (term, expected) in
                    ["next-token", "latents"].iter().zip(rows(expected_step, "terms")?)
                {
                    let (found, expected) = (stats.terms[*term], expected.as_f64().ok_or("term")?);
                    assert!((found - expected).abs() < 2e-4 * expected.max(0.1), "{what}: {term}");
                }
            }
            for parameter in learner.parameters() {
                let expected = &expected[&format!("final.{}", parameter.name)];
                let difference = relative_difference(&parameter.tensor, expected);
                assert!(difference < 2e-3, "{name}, {}: {difference:e}", parameter.name); // f32, ten steps
            }
        }
    }
    Ok(())
}

/// ReFT-r1 with a start on the wrong side of the relu, where no token has a latent above 0.
#[test]
fn a_direction_that_detects_nothing_is_turned_round() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let oracle: Value = serde_json::from_str(&oracle_text("steering/steering.json")?)?;
    let case = &oracle["cases"]["r1"];
    let options = options(case)?;
    let train = options.objective.examples(&texts(&oracle)?, &ENCODING, None)?;
    let (n, dataset) = (train.len(), Dataset { train, validation: Vec::new() });
    let layer = ids(&case["layers"])?[0];
    let rows: Vec<_> = dataset.train.iter().map(|text| text.row().clone()).collect();
    let tokens = rows
        .iter()
        .enumerate()
        .flat_map(|(row, own)| (0..own.input_ids.len()).map(move |token| TokenAt { row, token }));
    let place = Place::whole(Site { layer: layer as usize, component: Component::BlockOutput });
    let wanted = vec![(place, tokens.collect())];
    let layout = Layout::new(rows, PaddingSide::Right)?;
    let hidden = collect(&decoder, &AdapterStack::EMPTY, &layout, wanted)?.remove(0); // [m, d]
    // every token's product with it is -1
    let away = -hidden.pinverse(1e-6).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    assert!(hidden.matmul(&away).max().double_value(&[]) < 0.0, "some token lies on its side");
    let start = format!("init.layers.{layer}.block_output.direction");
    let start = BTreeMap::from([(start, away.shallow_clone())]);
    let adapters = vec![steering(&decoder, &start, case)?];
    let run = ingredients(&options, &adapters, &[])?;
    let objective = (options.objective.build)(&run)?;
    let learner = Learner::new(&decoder, &run.stack, &*objective);
    let config = TrainConfig {
        epochs: Some(4),
        batch_size: n,
        lr: 0.02,
        max_grad_norm: 0.0,
        shuffle: Shuffle::None,
        ..TrainConfig::default()
    };
    let mut trainer = Trainer::new(&learner, &dataset, config)?;
    let mut losses = Vec::new();
    for step in 0..4 {
        let batches = trainer.micro_batches(step)?;
        let Step::Taken(stats) = trainer.step(&batches)? else { panic!("overflow") };
        losses.push(stats.terms["next-token"]);
        let direction = learner.parameters()[0].tensor.detach();
        let along = (&direction / direction.norm()).dot(&(&away / away.norm())).double_value(&[]);
        match step {
            0 => assert!((along + 1.0).abs() < 1e-5, "it is not turned round: {along}"),
            _ => assert!(along < -0.5, "step {step}: it is turned back: {along}"),
        }
    }
    assert!((losses[1] - losses[0]).abs() > 1e-3, "it has no part in the loss: {losses:?}");
    Ok(())
}

#[test]
fn every_reply_draws_a_factor() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let oracle: Value = serde_json::from_str(&oracle_text("steering/steering.json")?)?;
    let case = &oracle["cases"]["reps_factor"];
    let expected: BTreeMap<_, _> =
        tensors("steering/reps_factor.safetensors")?.into_iter().collect();
    let adapters = [steering(&decoder, &expected, case)?];
    let loss = |factors: &str, seed: Option<i64>| -> Outcome<f64> {
        let mut options = options(case)?;
        options.steering_factors = Some(factors.parse()?);
        let run = ingredients(&options, &adapters, &[])?;
        let objective = (options.objective.build)(&run)?;
        let learner = Learner::new(&decoder, &run.stack, &*objective);
        let batch = learner.batch(&pairs(&oracle)?[..1])?;
        let mode = seed.map_or(Mode::Eval, |seed| {
            tch::manual_seed(seed);
            Mode::Train
        });
        Ok(learner.sums(&batch, mode, None)?[0].double_value(&[]))
    };
    let table = rows(&oracle, "drawn")?;
    let is_at = |found: f64, row: &Value| {
        row["loss"].as_f64().is_some_and(|expected| (found - expected).abs() < 1.5e-3) // f32 of 57
    };
    let mut seen = vec![0; table.len()];
    for seed in 0..72 {
        let found = loss("1,16,64", Some(seed))?;
        let at = table.iter().position(|row| is_at(found, row)).ok_or("a loss of no draw")?;
        seen[at] += 1;
    }
    assert!(seen.iter().all(|n| *n > 0), "{seen:?}");
    assert_eq!(loss("1,16,64", None)?, loss("27", Some(1))?);
    Ok(())
}

/// Steering away removes all of the direction from hidden states that had some; adapters without a direction are negated.
#[test]
fn away_takes_the_direction_out() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let oracle: Value = serde_json::from_str(&oracle_text("steering/steering.json")?)?;
    let expected: BTreeMap<_, _> = tensors("steering/reps.safetensors")?.into_iter().collect();
    let adapters = [steering(&decoder, &expected, &oracle["cases"]["reps"])?];
    let stack = AdapterStack::of_boxed(&adapters)?;
    let row = pairs(&oracle)?[0].row().clone();
    let layout = Layout::new(vec![row], PaddingSide::Right)?;
    let _guard = tch::no_grad_guard();
    let logits = |dose: Dose| -> Outcome<Tensor> {
        Ok(decoder.row_logits(&layout, &mut stack.hooks_of(dose, &layout, Mode::Eval)?)?.remove(0))
    };
    let (plain, away) = (logits(Dose::Times(0.0))?, logits(Dose::Away)?);
    let turned = logits(Dose::Times(-1.0))?;
    assert!((&away - plain).abs().max().double_value(&[]) > 1e-3, "no power");
    assert!((away - turned).abs().max().double_value(&[]) > 1e-3);
    Ok(())
}
