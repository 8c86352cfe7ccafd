//! Preferences against TRL 1.16: losses, gradients and steps. Files and generator: `tests/oracle/preferences`,
//! `tools/oracle/make_preferences.py`.

use std::sync::atomic::AtomicBool;

use reft_methods::{load_adapters, load_trainable_adapters};
use reft_models::Mode;
use reft_test_support::{oracle_text, tensors};
use reft_train::{
    Alone, Content, Dataset, Encoding, Error, FrozenStore, KeepingClose, Learner, ObjectiveOptions,
    Part, Record, Reduce, ScheduleKind, Share, Shuffle, Step, TrainConfig, Trainer,
};
use serde_json::Value;
use tch::Kind;

use crate::pairs::{ENCODING, Outcome, ingredients, options, pairs};
use crate::share::{Steps, Trajectory, assert_same, in_turns};
use crate::tiny_llama::{TestResult, alone, decoder, examples, oracle_path, relative_difference};

#[test]
fn losses_gradients_and_steps_are_trls() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let oracle: Value = serde_json::from_str(&oracle_text("preferences/preferences.json")?)?;
    let dataset = Dataset { train: pairs(&oracle)?, validation: Vec::new() };
    let start = oracle_path("closeness/adapter/start");
    let lr = oracle["lr"].as_f64().ok_or("lr")?;
    let cases = oracle["cases"].as_object().ok_or("cases")?;
    assert_eq!(cases.len(), 6);
    for (name, case) in cases {
        let expected = tensors(&format!("preferences/{name}.safetensors"))?;
        let of_start = if case["reference"] == "start" {
            load_adapters(&start, &decoder)?
        } else {
            Vec::new()
        };
        for (batch_size, reuse) in [(4, true), (1, false)] {
            let adapters = load_trainable_adapters(&start, &decoder)?;
            let options = options(case)?;
            let run = ingredients(&options, &adapters, &of_start)?;
            let objective = (options.objective.build)(&run)?;
            let learner = Learner::new(&decoder, &run.stack, &*objective);
            let config = TrainConfig {
                epochs: Some(4),
                batch_size,
                grad_accum: 4 / batch_size,
                lr,
                schedule: ScheduleKind::Constant,
                max_grad_norm: 0.0,
                shuffle: Shuffle::None,
                reuse,
                ..TrainConfig::default()
            };
            let mut trainer = Trainer::new(&learner, &dataset, config)?;
            for (step, expected_step) in case["steps"].as_array().ok_or("steps")?.iter().enumerate()
            {
                let what = format!("{name}, {batch_size} pairs at once, step {step}");
                let batches = trainer.micro_batches(step)?;
                let Step::Taken(stats) = trainer.step(&batches)? else { panic!("overflow") };
                let number = |field: &str| expected_step[field].as_f64().ok_or("no number");
                let (loss, margin) = (number("loss")?, number("margin")?);
                // f32, four layers, and AdamW that divides by small gradients
                assert!(
                    (stats.loss - loss).abs() < 1e-4 * loss.max(0.1),
                    "{what}: {} {loss}",
                    stats.loss
                );
                let found = stats.terms["margin"];
                assert!(
                    (found - margin).abs() < 2e-4 * margin.abs().max(0.1),
                    "{what}: {found} {margin}"
                );
                if margin != 0.0 {
                    assert_eq!(stats.terms["accuracy"], number("accuracy")?, "{what}");
                }
                let is_of_start = case["reference"] == "start" && step == 0;
                let divergence = stats.terms.get("kl_estimate");
                assert_eq!(divergence.is_some(), case.get("reference").is_some());
                assert!(!is_of_start || divergence.is_some_and(|nats| nats.abs() < 1e-5));
                for parameter in learner.parameters().iter().filter(|_| step == 0) {
                    let expected = &expected[&format!("grad.{}", parameter.name)];
                    assert!(expected.abs().max().double_value(&[]) > 1e-4, "no power");
                    let difference = relative_difference(&parameter.tensor.grad(), expected);
                    assert!(difference < 2e-4, "{what}, {}: {difference:e}", parameter.name); // f32
                }
            }
            for parameter in learner.parameters() {
                let expected = &expected[&format!("final.{}", parameter.name)];
                let difference = relative_difference(&parameter.tensor, expected);
                assert!(difference < 1e-3, "{name}, {}: {difference:e}", parameter.name); // f32, four steps
            }
        }
    }
    Ok(())
}

/// The reference is a separate run: training does not change it, and it is computed once.
#[test]
fn the_reference_run_is_computed_once_and_stays() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let oracle: Value = serde_json::from_str(&oracle_text("preferences/preferences.json")?)?;
    let pairs = pairs(&oracle)?;
    let start = load_adapters(&oracle_path("closeness/adapter/start"), &decoder)?;
    let adapters = load_trainable_adapters(&oracle_path("closeness/adapter/start"), &decoder)?;
    let options = options(&oracle["cases"]["dpo_start"])?;
    let run = ingredients(&options, &adapters, &start)?;
    let objective = (options.objective.build)(&run)?;
    let learner = Learner::new(&decoder, &run.stack, &*objective);
    let batch = learner.batch(&pairs)?;
    let mut store = FrozenStore::new(Default::default());
    let sums = |store: &mut FrozenStore| learner.sums(&batch, Mode::Eval, Some(store));
    let first = sums(&mut store)?;
    let kept = store.len();
    assert!(kept >= 8, "{kept}");
    tch::no_grad(|| {
        for parameter in adapters[0].parameters() {
            let _moved = parameter.tensor.shallow_clone().g_add_scalar_(0.01);
        }
    });
    let (cached, anew) = (sums(&mut store)?, sums(&mut FrozenStore::new(Default::default()))?);
    assert_eq!((&cached, store.len()), (&anew, kept));
    assert_ne!(first, cached);
    Ok(())
}

/// Several processes, each with a part of the pairs, compute the same as one.
#[test]
fn processes_share_pairs_and_reference() -> TestResult {
    let _alone = alone();
    let oracle: Value = serde_json::from_str(&oracle_text("preferences/preferences.json")?)?;
    let dataset = Dataset { train: pairs(&oracle)?, validation: Vec::new() };
    let case = &oracle["cases"]["dpo"];
    let run = |batch_size: usize,
               (share, reduction): (Share, &dyn Reduce)|
     -> Outcome<Trajectory> {
        let decoder = decoder(Kind::Float)?;
        let adapters = load_trainable_adapters(&oracle_path("closeness/adapter/start"), &decoder)?;
        let options = options(case)?;
        let own = ingredients(&options, &adapters, &[])?;
        let task = (options.objective.build)(&own)?;
        let objective = KeepingClose::new(&*task, 0.5, 8, Part::Task);
        let learner = Learner::new(&decoder, &own.stack, &objective);
        let config = TrainConfig { max_steps: Some(3), batch_size, lr: 5e-3, ..Default::default() };
        let mut trainer = Trainer::new(&learner, &dataset, config)?.sharing(share, reduction);
        let mut steps = Steps::default();
        trainer.run(&mut steps, &AtomicBool::new(false))?;
        let state = learner.parameters().iter().map(|p| p.tensor.detach().copy()).collect();
        Ok((steps.0, state))
    };
    let plain = run(4, (Share::WHOLE, &Alone))?;
    assert_eq!(plain.0.len(), 3);
    for part in in_turns(2, |share, reduction| run(2, (share, reduction)))? {
        assert_same(&part, &plain);
    }
    Ok(())
}

/// Preferences and a divergence from the plain model go together.
#[test]
fn a_preference_is_learned_close_to_the_frozen_model() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let oracle: Value = serde_json::from_str(&oracle_text("preferences/preferences.json")?)?;
    let dataset = Dataset { train: pairs(&oracle)?, validation: Vec::new() };
    let replay = examples(3);
    let margin = |weight: f64| -> Outcome<[f64; 2]> {
        let adapters = load_trainable_adapters(&oracle_path("closeness/adapter/start"), &decoder)?;
        let options = options(&oracle["cases"]["dpo"])?;
        let own = ingredients(&options, &adapters, &[])?;
        let task = (options.objective.build)(&own)?;
        let objective = KeepingClose::new(&*task, weight, 8, Part::Replay);
        let learner = Learner::new(&decoder, &own.stack, &objective);
        let config =
            TrainConfig { max_steps: Some(12), batch_size: 4, lr: 5e-3, ..Default::default() };
        let mut trainer = Trainer::new(&learner, &dataset, config)?.replaying(&replay, 3)?;
        let mut last = [0.0; 2];
        for step in 0..12 {
            let batches = trainer.micro_batches(step)?;
            assert_eq!(batches.len(), 2);
            let Step::Taken(stats) = trainer.step(&batches)? else { panic!("overflow") };
            let expected = stats.terms["dpo"] + weight * stats.terms["kl"];
            assert!((stats.loss - expected).abs() < 1e-6 * expected.max(1.0)); // f32
            last = [stats.terms["margin"], stats.terms["kl"]];
        }
        Ok(last)
    };
    let ([free, far], [held, near]) = (margin(1e-3)?, margin(10.0)?);
    assert!(free > 1.0 && held > 0.1, "{free} {held}");
    assert!(near < 0.3 * far, "{near} {far}");
    Ok(())
}

#[test]
fn options_that_an_objective_has_no_use_for_are_refused_by_name() -> TestResult {
    for (text, option) in [
        ("beta = 0.1", "beta"),
        ("objective = \"orpo\"\nreference = \"base\"", "reference"),
        ("objective = \"dpo\"\nsimpo_gamma = 1.0", "simpo_gamma"),
        ("objective = \"dpo\"\nsteering_factors = \"2\"", "steering_factors"),
        ("objective = \"reps\"\ntop_k = 2", "top_k"),
        ("objective = \"ipo\"\nlabel_smoothing = 0.1", "label_smoothing"),
        ("objective = \"dpo\"\nlabel_smoothing = 0.5", "label_smoothing"),
        ("objective = \"dpo\"\nbeta = 0.0", "beta"),
        ("kl_weight = -1.0", "kl_weight"),
        ("kl_top_k = 3", "kl_top_k"),
    ] {
        let options: ObjectiveOptions = toml::from_str(text)?;
        let refused = options.check();
        assert!(
            matches!(&refused, Err(Error::Core(reft_core::Error::OptionValue { option: o, .. })) if *o == option),
            "{text}: {refused:?}"
        );
    }
    let unknown = toml::from_str::<ObjectiveOptions>("objective = \"ppo\"");
    assert!(unknown.is_err_and(|error| error.to_string().contains("next-token, dpo, ipo")));
    Ok(())
}

/// A reply that is cut off entirely cannot be preferred.
#[test]
fn a_pair_without_a_reply_left_is_refused_by_id() {
    let of = |n: i64| Content::Tokens {
        input_ids: (3..3 + n).collect(),
        prompt_length: 4,
        labels: None,
    };
    let content = Content::Preference { chosen: of(6).into(), rejected: of(4).into() };
    let refused = ENCODING.examples(&[Record::new("it", content.clone())]);
    assert!(matches!(&refused, Err(Error::NoLabel { id, .. }) if id == "it"), "{refused:?}");
    let content = Content::Preference { chosen: of(6).into(), rejected: of(7).into() };
    let encoding = Encoding { max_length: 4, ..ENCODING };
    let refused = encoding.examples(&[Record::new("it", content)]);
    assert!(matches!(&refused, Err(Error::NoTarget { id, .. }) if id == "it"), "{refused:?}");
}
