//! What a run does where nothing is said: by the number of examples. docs/guide.md has the measurements.

use std::ops::RangeInclusive;

use reft_train::TrainConfig;
use toml::Table;

use crate::terminal::note;
use crate::train::run_options::RunOptions;

/// So many examples are enough to hold some out unasked: one in twenty, and no more than are needed to tell adapters apart.
const ENOUGH: usize = 200;
const HELD_OUT: usize = 20;
const MOST_HELD_OUT: usize = 200;

/// The options with examples held out, where there are enough and nothing is said of it.
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

/// Optimizer steps of a run, as near to them as whole epochs come.
const USUAL_STEPS: usize = 300;
/// Epochs of a run of many examples, and of few.
const USUAL_EPOCHS: RangeInclusive<usize> = 3..=15;
/// Very few examples are seen more often, until a run has so many steps.
const LEAST_STEPS: usize = 100;

/// The options with a number of epochs, where nothing is said of how long the run is to be.
pub fn with_length(config: TrainConfig, examples: usize) -> TrainConfig {
    if config.epochs.is_some() || config.max_steps.is_some() {
        return config;
    }
    let epochs = epochs_of(examples.div_ceil(config.batch_size).div_ceil(config.grad_accum));
    note(format!(
        "{epochs} epochs, by the number of examples (--epochs or --max-steps changes it)"
    ));
    TrainConfig { epochs: Some(epochs), ..config }
}

/// Epochs of so many steps each.
fn epochs_of(steps: usize) -> usize {
    let steps = steps.max(1);
    let usual = USUAL_STEPS.div_ceil(steps).clamp(*USUAL_EPOCHS.start(), *USUAL_EPOCHS.end());
    usual.max(LEAST_STEPS.div_ceil(steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_examples_are_seen_often_and_many_three_times() {
        for (steps, epochs) in
            [(0, 100), (1, 100), (3, 34), (8, 15), (18, 15), (24, 13), (100, 3), (5000, 3)]
        {
            assert_eq!(epochs_of(steps), epochs, "{steps} steps an epoch");
        }
    }

    #[test]
    fn a_length_that_is_given_stays() {
        let given = TrainConfig { max_steps: Some(7), ..TrainConfig::default() };
        assert_eq!(with_length(given.clone(), 60), given);
        let accumulated = TrainConfig { grad_accum: 3, ..TrainConfig::default() }; // 60 examples are 3 steps
        assert_eq!(with_length(accumulated, 60).epochs, Some(34));
    }
}
