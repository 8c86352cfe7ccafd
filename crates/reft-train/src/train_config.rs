use serde::{Deserialize, Serialize};

use crate::batches::Shuffle;
use crate::schedule::ScheduleKind;
use crate::{Error, Result};

/// The options of a training run that do not concern the method.
///
/// The kind that the frozen model computes in is not among them: it is the [`Decoder`](reft_models::Decoder)'s.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the data; without it and without `max_steps`: 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Optimizer steps, whatever number of epochs they are. Excludes `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<usize>,
    /// Examples of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of a step.
    pub grad_accum: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Learning rate of rotations, as a multiple of that of other parameters.
    pub rotation_lr_factor: f64,
    /// How the learning rate changes over the run.
    pub schedule: ScheduleKind,
    /// Share of the steps in which the learning rate rises from 0.
    pub warmup_ratio: f64,
    /// Decoupled weight decay; rotations are exempt from it.
    pub weight_decay: f64,
    /// Largest norm of all gradients together; 0: not clipped.
    pub max_grad_norm: f64,
    /// Longest example in tokens; what is longer is cut at its end.
    pub max_length: usize,
    /// Seed of everything random: order, split, dropout.
    pub seed: u64,
    /// Order of the examples.
    pub shuffle: Shuffle,
    /// Examples held out: a share if below 1, else a number; 0: none. The adapter with the lowest loss on them is kept.
    pub validation: f64,
    /// Steps between validations; 0: after every epoch.
    pub eval_every: usize,
    /// Whether each block is computed again in the backward, instead of keeping its activations.
    pub checkpoint_activations: bool,
    /// Whether the frozen model's part of each example is computed once and kept.
    pub reuse: bool,
    /// Steps between checkpoints; 0: only when the run ends or is interrupted.
    pub checkpoint_every: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: None,
            max_steps: None,
            batch_size: 8,
            grad_accum: 1,
            lr: 1e-3,
            rotation_lr_factor: 1.0,
            schedule: ScheduleKind::Linear,
            warmup_ratio: 0.0,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            max_length: 512,
            seed: 0,
            shuffle: Shuffle::Length,
            validation: 0.0,
            eval_every: 0,
            checkpoint_activations: false,
            reuse: true,
            checkpoint_every: 100,
        }
    }
}

impl TrainConfig {
    /// Refuses values that cannot be.
    ///
    /// # Errors
    /// [`Error::Config`] with the field's name.
    pub fn check(&self) -> Result<()> {
        let at_least_one = [
            ("epochs", self.epochs.unwrap_or(1)),
            ("max_steps", self.max_steps.unwrap_or(1)),
            ("batch_size", self.batch_size),
            ("grad_accum", self.grad_accum),
        ];
        for (field, value) in at_least_one {
            require(value >= 1, field, value, "a whole number of at least 1")?;
        }
        if let (Some(epochs), Some(max_steps)) = (self.epochs, self.max_steps) {
            let found = format!("{max_steps} beside epochs = {epochs}");
            require(false, "max_steps", found, "one of the two")?;
        }
        require(self.max_length >= 2, "max_length", self.max_length, "at least 2 tokens")?;
        for (field, value) in [("lr", self.lr), ("rotation_lr_factor", self.rotation_lr_factor)] {
            require(value.is_finite() && value > 0.0, field, value, "a number above 0")?;
        }
        let ratio = self.warmup_ratio;
        require((0.0..=1.0).contains(&ratio), "warmup_ratio", ratio, "a share from 0 to 1")?;
        for (field, value) in
            [("weight_decay", self.weight_decay), ("max_grad_norm", self.max_grad_norm)]
        {
            require(value.is_finite() && value >= 0.0, field, value, "0 or a number above 0")?;
        }
        let held_out = self.validation;
        require(
            (0.0..1.0).contains(&held_out)
                || (held_out.is_finite() && held_out.fract() == 0.0 && held_out >= 1.0),
            "validation",
            held_out,
            "a share from 0 to below 1, or a whole number of examples",
        )
    }
}

fn require(
    holds: bool,
    field: &'static str,
    found: impl ToString,
    expected: &'static str,
) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Config { field, found: found.to_string(), expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(config: TrainConfig) -> &'static str {
        match config.check() {
            Err(Error::Config { field, .. }) => field,
            other => panic!("{config:?} gave {other:?}"),
        }
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        let ok = TrainConfig::default;
        assert!(ok().check().is_ok());
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
}
