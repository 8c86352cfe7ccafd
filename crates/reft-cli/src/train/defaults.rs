//! The defaults of a run that depend on the number of examples. docs/guide.md has the measurements.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use anyhow::Result;
use reft_methods::declarations;
use reft_train::{Example, TrainConfig};
use toml::Table;

use crate::terminal::note;
use crate::train::run_options::RunOptions;

/// Fewest examples to hold some out by default: one in [`HELD_OUT`], at most [`MOST_HELD_OUT`], which are enough to compare adapters.
const ENOUGH: usize = 200;
const HELD_OUT: usize = 20;
const MOST_HELD_OUT: usize = 200;

/// Holds examples out if there are enough of them and no option sets the validation.
pub fn with_validation(
    config: TrainConfig,
    run: &RunOptions,
    given: &Table,
    examples: usize,
) -> TrainConfig {
    if given.contains_key("validation") || run.validation_data.is_some() || examples < ENOUGH {
        return config;
    }
    let held_out = (examples / HELD_OUT).min(MOST_HELD_OUT);
    note(format!(
        "{held_out} of {examples} examples are held out, and the adapter that does best on them is kept (--validation 0 trains on all)"
    ));
    TrainConfig { validation: held_out as f64, ..config }
}

/// Target for the optimizer steps of a run, from which the number of epochs follows.
const USUAL_STEPS: usize = 200;
/// Number of epochs with many examples, and with few.
const USUAL_EPOCHS: RangeInclusive<usize> = 3..=10;
/// Fewest optimizer steps of a run. Very few examples get more epochs than usual to reach them.
const LEAST_STEPS: usize = 80;

/// Sets the number of epochs if neither epochs nor steps are given.
pub fn with_length(config: TrainConfig, examples: usize, processes: usize) -> TrainConfig {
    if config.epochs.is_some() || config.max_steps.is_some() {
        return config;
    }
    let each = config.grad_accum * processes;
    let epochs = epochs_of(examples.div_ceil(config.batch_size).div_ceil(each));
    note(format!(
        "{epochs} epochs, by the number of examples (--epochs or --max-steps changes it)"
    ));
    TrainConfig { epochs: Some(epochs), ..config }
}

/// Sets the learning rate if none is given: the lowest usual rate of the methods.
///
/// # Errors
/// If a method is not known.
pub fn with_rate(config: TrainConfig, given: &Table, methods: &str) -> Result<TrainConfig> {
    if given.contains_key("lr") {
        return Ok(config);
    }
    let usual =
        declarations(methods)?.iter().map(|method| method.usual_lr).fold(f64::MAX, f64::min);
    Ok(TrainConfig { lr: usual, ..config })
}

/// Fewest examples for which a method other than the default is worth its time on classes, and most different replies that count as classes.
const ENOUGH_OF_CLASSES: usize = 900;
const MOST_CLASSES: usize = 20;
/// The options of recipes/classes.toml that differ from the defaults, as flags, without the seed.
const FOR_CLASSES: &str = "--component mlp_output --rank 64 --positions all --rotation-lr-factor 0.1 --lr 4e-4 --warmup-ratio 0.1 --batch-size 16 --epochs 3";

/// Options that choose a method or its edits. With one of them the run is not a default run.
const OF_METHODS: [&str; 7] =
    ["method", "layers", "component", "positions", "rank", "init_adapter", "objective"];

/// In a default run whose replies are few different texts, prints the flags of a method that distinguishes classes better.
pub fn say_what_suits_classes(given: &Table, examples: &[Example]) {
    let is_default = OF_METHODS.iter().all(|name| !given.contains_key(*name));
    if let (true, Some(classes)) = (is_default, classes_of(examples)) {
        note(format!(
            "{} examples have {classes} different replies, as classes do: {FOR_CLASSES} tells them apart better and takes several times as long (docs/guide.md)",
            examples.len()
        ));
    }
}

/// The number of different replies, if the examples are many enough and the replies few enough to be classes.
fn classes_of(examples: &[Example]) -> Option<usize> {
    if examples.len() < ENOUGH_OF_CLASSES {
        return None;
    }
    let mut replies = BTreeSet::new();
    for row in examples.iter().map(Example::row) {
        replies.insert(&row.input_ids[row.prompt_length..]);
        if replies.len() > MOST_CLASSES {
            return None;
        }
    }
    Some(replies.len()).filter(|classes| *classes > 1)
}

/// Number of epochs of a run with `steps` steps per epoch.
fn epochs_of(steps: usize) -> usize {
    let steps = steps.max(1);
    let usual = USUAL_STEPS.div_ceil(steps).clamp(*USUAL_EPOCHS.start(), *USUAL_EPOCHS.end());
    usual.max(LEAST_STEPS.div_ceil(steps))
}

#[cfg(test)]
mod tests {
    use std::iter::once;
    use std::path::Path;

    use clap::{Args, Command, FromArgMatches};
    use reft_models::{DecoderConfig, Row};
    use reft_test_support::oracle;

    use super::*;
    use crate::options::Flags;
    use crate::train::config_file;
    use crate::train::method::TrainMethod;
    use crate::train::run_options::{TrainFlags, part};

    #[test]
    fn few_examples_are_seen_often_and_many_three_times() {
        for (steps, epochs) in
            [(0, 80), (1, 80), (3, 27), (8, 10), (18, 10), (24, 9), (100, 3), (5000, 3)]
        {
            assert_eq!(epochs_of(steps), epochs, "{steps} steps an epoch");
        }
    }

    #[test]
    fn few_replies_of_many_examples_are_classes() {
        let example = |i: i64, classes: i64| {
            let ids = vec![i, 7, 90 + i % classes, 3];
            let row = Row { input_ids: ids.clone(), prompt_length: 2, ..Row::default() };
            Example::of(i.to_string(), row, ids)
        };
        let classes = |n: i64, classes: i64| {
            classes_of(&(0..n).map(|i| example(i, classes)).collect::<Vec<_>>())
        };
        assert_eq!(classes(1000, 6), Some(6));
        assert_eq!(classes(1000, 20), Some(20));
        assert_eq!(classes(1000, 21), None); // replies, not classes
        assert_eq!(classes(899, 6), None); // too few to be worth it
        assert_eq!(classes(1000, 1), None); // nothing to tell apart
    }

    /// Flags and recipe give the same method and the same training, except for the seed.
    #[test]
    fn the_flags_for_classes_are_the_recipe() -> Result<()> {
        let command = Flags::<TrainFlags>::augment_args(Command::new("train"));
        let words = once("train").chain(FOR_CLASSES.split(' '));
        let matches = command.try_get_matches_from(words)?;
        let Flags(TrainFlags(flags)) = Flags::from_arg_matches(&matches)?;
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/classes.toml");
        let recipe = config_file::read(&recipe)?;
        let model = DecoderConfig::open(&oracle("tiny_llama"))?.describe();
        let in_force = |given: &Table| -> Result<(Table, TrainConfig)> {
            let run: RunOptions = part(given)?;
            let method = TrainMethod::of(&run, given, &model, None)?;
            Ok((method.resolved(&run)?, TrainConfig { seed: 0, ..run.train_config(given)? }))
        };
        assert_eq!(in_force(&flags)?, in_force(&recipe)?);
        Ok(())
    }

    #[test]
    fn a_rate_is_the_methods_unless_it_is_given() -> Result<()> {
        let rate = |given: &Table, methods: &str| -> Result<f64> {
            Ok(with_rate(TrainConfig { lr: 7e-3, ..TrainConfig::default() }, given, methods)?.lr)
        };
        let nothing = Table::new();
        assert_eq!(rate(&nothing, "loreft")?, 2e-3);
        assert_eq!(rate(&nothing, "loreft+lora")?, 1e-3);
        assert_eq!(rate(&nothing, "full")?, 2e-5);
        let given = Table::from_iter([("lr".to_owned(), toml::Value::Float(7e-3))]);
        assert_eq!(rate(&given, "full")?, 7e-3);
        Ok(())
    }

    #[test]
    fn a_length_that_is_given_stays() {
        let given = TrainConfig { max_steps: Some(7), ..TrainConfig::default() };
        assert_eq!(with_length(given.clone(), 60, 1), given);
        let accumulated = TrainConfig { grad_accum: 3, ..TrainConfig::default() }; // 60 examples are 3 steps
        assert_eq!(with_length(accumulated, 60, 1).epochs, Some(27));
        assert_eq!(with_length(TrainConfig::default(), 60, 3).epochs, Some(27));
    }
}
