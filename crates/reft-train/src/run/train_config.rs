use reft_core::{DeclaredOptions, Error as CoreError, LARGEST_COUNT, declare_options};

use crate::{Metric, Result, ScheduleKind, Shuffle};

const AT_LEAST_ONE: &str = "a whole number of at least 1 and at most 1,000,000,000";
const NOT_ABSURD: &str = "a whole number of at most 1,000,000,000";
const ABOVE_ZERO: &str = "a number above 0";
const NOT_BELOW_ZERO: &str = "0 or a number above 0";

fn is_positive(n: usize) -> bool {
    (1..=LARGEST_COUNT).contains(&n)
}

declare_options! {
    /// The options of a training run that do not concern the method.
    ///
    /// The kind of the frozen model's numbers is not among them: it belongs to the [`Model`](reft_models::Model).
    pub struct TrainConfig {
        /// Passes over the data; without epochs and max_steps, `reft train` chooses by the number of examples: 3 to 10, and more if these are fewer than 80 steps
        #[serde(skip_serializing_if = "Option::is_none")]
        epochs: Option<usize> = None, Count("N") in "Training" [recipe] if is_positive, AT_LEAST_ONE;
        /// Number of optimizer steps; excludes epochs
        #[serde(skip_serializing_if = "Option::is_none")]
        max_steps: Option<usize> = None, Count("N") in "Training" [recipe] if is_positive, AT_LEAST_ONE;
        /// Examples of a micro-batch
        batch_size: usize = 8, Count("N") in "Training" [recipe] if is_positive, AT_LEAST_ONE;
        /// Micro-batches of an optimizer step
        grad_accum: usize = 1, Count("N") in "Training" [recipe] if is_positive, AT_LEAST_ONE;
        /// Highest learning rate of AdamW; without it `reft train` takes the method's usual one
        lr: f64 = 1e-3, Number("X") in "Training" if |x: f64| x.is_finite() && x > 0.0, ABOVE_ZERO;
        /// Learning rate of ReFT's rotations, as a multiple of other parameters' rate
        rotation_lr_factor: f64 = 1.0, Number("X") in "Training" if |x: f64| x.is_finite() && x > 0.0, ABOVE_ZERO;
        /// How the learning rate changes after the warm-up: linear, cosine or constant
        schedule: ScheduleKind = ScheduleKind::Linear, Text("NAME") in "Training" [recipe];
        /// Share of the steps in which the learning rate rises from 0, 0 to 1
        warmup_ratio: f64 = 0.0, Number("X") in "Training" [recipe] if |x: f64| (0.0..=1.0).contains(&x), "a share from 0 to 1";
        /// Decoupled weight decay; rotations are exempt
        weight_decay: f64 = 0.0, Number("X") in "Training" [recipe] if |x: f64| x.is_finite() && x >= 0.0, NOT_BELOW_ZERO;
        /// Largest norm of all gradients together; 0 = not clipped
        max_grad_norm: f64 = 1.0, Number("X") in "Training" [recipe] if |x: f64| x.is_finite() && x >= 0.0, NOT_BELOW_ZERO;
        /// Longest example in tokens; longer ones are cut at their end
        max_length: usize = 512, Count("N") in "Data" [recipe]
            if |n: usize| (2..=LARGEST_COUNT).contains(&n), "at least 2 tokens, and at most 1,000,000,000";
        /// Seed of everything random: start, order, split, dropout
        seed: u64 = 0, Count("N") in "Training";
        /// Order of the examples: length (shuffled, similar lengths together), plain or none
        shuffle: Shuffle = Shuffle::Length, Text("ORDER") in "Data" [recipe];
        /// Training ends after the first step whose loss is no more than this; without it all steps are taken
        #[serde(skip_serializing_if = "Option::is_none")]
        stop_at_loss: Option<f64> = None, Number("X") in "Training" [recipe] if |x: f64| x.is_finite() && x > 0.0, ABOVE_ZERO;
        /// Metric on held-out examples that chooses the best adapter: loss, or a metric of the objective (accuracy, f1, matthews, pearson,
        /// spearman or mean_squared_error); without it the loss
        #[serde(skip_serializing_if = "Option::is_none")]
        best: Option<Metric> = None, Text("METRIC") in "Training" [recipe];
        /// Training ends after this many validations in a row without a better adapter
        #[serde(skip_serializing_if = "Option::is_none")]
        patience: Option<usize> = None, Count("N") in "Training" if is_positive, AT_LEAST_ONE;
        /// Examples to hold out for choosing the best adapter: a share below 1, or a number
        validation: f64 = 0.0, Number("X") in "Data"
            if |x: f64| (0.0..1.0).contains(&x) || (x.is_finite() && x.fract() == 0.0 && x >= 1.0),
            "a share from 0 to below 1, or a whole number of examples";
        /// Steps between validations; 0 = after every epoch
        eval_every: usize = 0, Count("N") in "Training" if |n: usize| n <= LARGEST_COUNT, NOT_ABSURD;
        /// Keep only each block's input and recompute its activations in the backward: less memory
        checkpoint_activations: bool = false, Switch("BOOL") in "Machine";
        /// Compute the frozen model's activations for each example once and cache them
        reuse: bool = true, Switch("BOOL") in "Machine";
        /// Steps between checkpoints; 0 = only at the end or when interrupted
        checkpoint_every: usize = 100, Count("N") in "Training" if |n: usize| n <= LARGEST_COUNT, NOT_ABSURD;
    }
}

impl TrainConfig {
    /// Refuses invalid values.
    ///
    /// # Errors
    /// [`CoreError::OptionValue`] with the field's name.
    pub fn check(&self) -> Result<()> {
        self.check_each()?;
        if let (Some(epochs), Some(max_steps)) = (self.epochs, self.max_steps) {
            let found = format!("{max_steps} beside epochs = {epochs}");
            let (option, expected) = ("max_steps", "one of the two");
            return Err(CoreError::OptionValue { option, found, expected }.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(config: TrainConfig) -> &'static str {
        match config.check() {
            Err(crate::Error::Core(CoreError::OptionValue { option, .. })) => option,
            other => panic!("{config:?} gave {other:?}"),
        }
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        let ok = TrainConfig::default;
        // the ends of the allowed range are included
        let first =
            TrainConfig { warmup_ratio: 0.0, weight_decay: 0.0, max_grad_norm: 0.0, ..ok() };
        let last = TrainConfig { warmup_ratio: 1.0, validation: 0.0, max_length: 2, ..ok() };
        for good in [ok(), first, last] {
            let refused = good.check().err().map(|error| error.to_string());
            assert_eq!(refused, None, "{good:?}");
        }
        for bad in [f64::NAN, 0.0, -1e-3, f64::INFINITY] {
            assert_eq!(refused(TrainConfig { lr: bad, ..ok() }), "lr");
        }
        for bad in [f64::NAN, -0.1, 1.1] {
            assert_eq!(refused(TrainConfig { warmup_ratio: bad, ..ok() }), "warmup_ratio");
        }
        for bad in [f64::NAN, -1.0, f64::INFINITY] {
            assert_eq!(refused(TrainConfig { weight_decay: bad, ..ok() }), "weight_decay");
            assert_eq!(refused(TrainConfig { max_grad_norm: bad, ..ok() }), "max_grad_norm");
        }
        for bad in [f64::NAN, -0.5, 1.5, f64::INFINITY] {
            assert_eq!(refused(TrainConfig { validation: bad, ..ok() }), "validation");
        }
        assert_eq!(refused(TrainConfig { epochs: Some(0), ..ok() }), "epochs");
        assert_eq!(refused(TrainConfig { max_steps: Some(0), ..ok() }), "max_steps");
        assert_eq!(
            refused(TrainConfig { epochs: Some(1), max_steps: Some(1), ..ok() }),
            "max_steps"
        );
        assert_eq!(refused(TrainConfig { batch_size: 0, ..ok() }), "batch_size");
        assert_eq!(refused(TrainConfig { grad_accum: 0, ..ok() }), "grad_accum");
        assert_eq!(refused(TrainConfig { max_length: 1, ..ok() }), "max_length");
        let absurd = LARGEST_COUNT + 1;
        for (config, option) in [
            (TrainConfig { epochs: Some(absurd), ..ok() }, "epochs"),
            (TrainConfig { max_steps: Some(absurd), ..ok() }, "max_steps"),
            (TrainConfig { batch_size: absurd, ..ok() }, "batch_size"),
            (TrainConfig { grad_accum: absurd, ..ok() }, "grad_accum"),
            (TrainConfig { max_length: absurd, ..ok() }, "max_length"),
            (TrainConfig { eval_every: absurd, ..ok() }, "eval_every"),
            (TrainConfig { patience: Some(0), ..ok() }, "patience"),
            (TrainConfig { checkpoint_every: absurd, ..ok() }, "checkpoint_every"),
        ] {
            assert_eq!(refused(config), option);
        }
    }

    #[test]
    fn a_file_holds_any_of_the_fields_and_no_other() -> std::result::Result<(), toml::de::Error> {
        let config: TrainConfig = toml::from_str("max_steps = 7\nshuffle = \"none\"\nlr = 4e-3")?;
        let expected = TrainConfig {
            max_steps: Some(7),
            shuffle: Shuffle::None,
            lr: 4e-3,
            ..TrainConfig::default()
        };
        assert_eq!(config, expected);
        let unknown = toml::from_str::<TrainConfig>("learning_rate = 1e-3");
        assert!(unknown.is_err_and(|error| error.message().contains("learning_rate")));
        Ok(())
    }

    /// Comparisons are identified by these fields in this order.
    #[test]
    fn the_options_of_recipes_are_marked_in_the_order_of_files() {
        let recipe = TrainConfig::DECLARED.iter().filter(|option| option.is_in_recipes);
        let names: Vec<&str> = recipe.map(|option| option.name).collect();
        let expected = [
            "epochs",
            "max_steps",
            "batch_size",
            "grad_accum",
            "schedule",
            "warmup_ratio",
            "weight_decay",
            "max_grad_norm",
            "max_length",
            "shuffle",
            "stop_at_loss",
            "best",
        ];
        assert_eq!(names, expected);
        let lr = TrainConfig::DECLARED.iter().find(|option| option.name == "lr");
        assert_eq!(
            lr.map(|option| option.help),
            Some(
                "Highest learning rate of AdamW; without it `reft train` takes the method's usual one"
            )
        );
    }
}
