use reft_core::{DeclaredOptions, LARGEST_COUNT, declare_options};

use crate::{Error, Metric, ReadRows, Result, Told, read_labelled, read_preferences, read_records};

/// What a run learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ObjectiveKind {
    /// The next token of each row.
    #[default]
    NextToken,
    /// Direct preference optimization.
    Dpo,
    /// Identity preference optimization.
    Ipo,
    /// Odds ratio preference optimization.
    Orpo,
    /// Simple preference optimization.
    Simpo,
    /// Reference-free preference steering.
    Reps,
    /// One direction that detects a concept and steers towards it.
    ReftR1,
    /// The class of a text, by a head.
    Classification,
    /// A number of a text, by a head.
    Regression,
    /// How good a reply is, by a head.
    Reward,
}

reft_core::names!(ObjectiveKind, "objective", reft_core::Error, {
    NextToken => "next-token", Dpo => "dpo", Ipo => "ipo", Orpo => "orpo", Simpo => "simpo",
    Reps => "reps", ReftR1 => "reft-r1",
    Classification => "classification", Regression => "regression", Reward => "reward",
});

impl ObjectiveKind {
    /// Whether it makes one of two replies the likelier one.
    pub fn prefers(self) -> bool {
        matches!(self, Self::Dpo | Self::Ipo | Self::Orpo | Self::Simpo | Self::Reps)
    }

    /// What a head learns to tell, if it trains one.
    pub fn told(self) -> Option<Told> {
        match self {
            Self::Classification => Some(Told::Class),
            Self::Regression => Some(Told::Number),
            Self::Reward => Some(Told::Reward),
            _ => None,
        }
    }

    /// What examples held out can be measured by beside the loss, the usual metric first.
    pub fn metrics(self) -> &'static [Metric] {
        match self.told() {
            Some(told) => told.metrics(),
            None if self.prefers() => &[Metric::Accuracy],
            None => &[],
        }
    }

    /// What reads its rows.
    pub fn reader(self) -> ReadRows {
        match self {
            Self::NextToken => read_records,
            Self::Classification | Self::Regression | Self::ReftR1 => read_labelled,
            Self::Dpo | Self::Ipo | Self::Orpo | Self::Simpo | Self::Reps | Self::Reward => {
                read_preferences
            }
        }
    }

    /// Whether it compares with a reference run.
    pub fn compares(self) -> bool {
        matches!(self, Self::Dpo | Self::Ipo)
    }
}

/// Which run preferences are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferenceRun {
    /// The plain model's.
    Base,
    /// That of the adapter that the run starts from.
    Start,
}

reft_core::names!(ReferenceRun, "reference", reft_core::Error, { Base => "base", Start => "start" });

declare_options! {
    /// The options of what is learned.
    pub struct ObjectiveOptions {
        /// next-token; classification or regression of labelled texts; dpo, ipo, orpo, simpo or reward of pairs; steering: reps of pairs, reft-r1 of texts with a concept or without
        objective: ObjectiveKind = ObjectiveKind::NextToken, Text("NAME") in "Objective";
        /// Weight of a preference [default: 0.1; simpo: 2]; reps: of what the plain model has against it [default: 1]
        #[serde(skip_serializing_if = "Option::is_none")]
        beta: Option<f64> = None, Number("X") in "Objective" if |x: f64| x.is_finite() && x > 0.0, "a number above 0";
        /// dpo: share of pairs taken for wrong, 0 to below 0.5 [default: 0]
        #[serde(skip_serializing_if = "Option::is_none")]
        label_smoothing: Option<f64> = None, Number("X") in "Objective" if |x: f64| (0.0..0.5).contains(&x), "a share from 0 to below 0.5";
        /// simpo: margin to be reached [default: 1]
        #[serde(skip_serializing_if = "Option::is_none")]
        simpo_gamma: Option<f64> = None, Number("X") in "Objective" if |x: f64| x.is_finite() && x >= 0.0, "0 or a number above 0";
        /// dpo, ipo: base or start [default: base; start with --init-adapter]
        #[serde(skip_serializing_if = "Option::is_none")]
        reference: Option<ReferenceRun> = None, Text("NAME") in "Objective";
        /// reft-r1: largest latents of a text that it is steered by [default: 8]
        #[serde(skip_serializing_if = "Option::is_none")]
        top_k: Option<usize> = None, Count("N") in "Objective" if |n: usize| (1..=LARGEST_COUNT).contains(&n), "a whole number of at least 1 and at most 1,000,000,000";
        /// reft-r1: weight of the latents that are to be 0, at the end of the run [default: 0.03]
        #[serde(skip_serializing_if = "Option::is_none")]
        latent_weight: Option<f64> = None, Number("X") in "Objective" if |x: f64| x.is_finite() && x >= 0.0, "0 or a number above 0";
        /// Weight of the divergence from the frozen model, in nats per token
        #[serde(skip_serializing_if = "Option::is_none")]
        kl_weight: Option<f64> = None, Number("X") in "Objective" if |x: f64| x.is_finite() && x > 0.0, "a number above 0";
        /// Likeliest tokens that it tells apart; 0 = every one
        kl_top_k: usize = 64, Count("N") in "Objective" if |n: usize| n <= LARGEST_COUNT, "a whole number of at most 1,000,000,000";
        /// Rows of the replay file in each step
        replay_batch_size: usize = 4, Count("N") in "Objective"
            if |n: usize| (1..=LARGEST_COUNT).contains(&n), "a whole number of at least 1 and at most 1,000,000,000";
        /// Longest reply made for a row without one, in tokens
        replay_tokens: usize = 32, Count("N") in "Objective"
            if |n: usize| (1..=LARGEST_COUNT).contains(&n), "a whole number of at least 1 and at most 1,000,000,000";
    }
}

impl ObjectiveOptions {
    /// Refuses values that cannot be, and those that the objective has no use for.
    ///
    /// # Errors
    /// [`reft_core::Error::OptionValue`] with the option's name.
    pub fn check(&self) -> Result<()> {
        self.check_each()?;
        let kind = self.objective;
        let number = |value: Option<f64>| value.map(|value| value.to_string());
        let of_others = [
            ("beta", number(self.beta), kind.prefers(), "objective dpo, ipo, orpo, simpo or reps"),
            (
                "top_k",
                self.top_k.map(|n| n.to_string()),
                kind == ObjectiveKind::ReftR1,
                "objective reft-r1",
            ),
            (
                "latent_weight",
                number(self.latent_weight),
                kind == ObjectiveKind::ReftR1,
                "objective reft-r1",
            ),
            (
                "label_smoothing",
                number(self.label_smoothing),
                kind == ObjectiveKind::Dpo,
                "objective dpo",
            ),
            (
                "simpo_gamma",
                number(self.simpo_gamma),
                kind == ObjectiveKind::Simpo,
                "objective simpo",
            ),
            (
                "reference",
                self.reference.map(|run| run.to_string()),
                kind.compares(),
                "objective dpo or ipo",
            ),
        ];
        let default = Self::default();
        let count = |own: usize, default: usize| (own != default).then(|| own.to_string());
        let is_kept = self.kl_weight.is_some();
        let of_keeping = [
            ("kl_top_k", self.kl_top_k, default.kl_top_k),
            ("replay_batch_size", self.replay_batch_size, default.replay_batch_size),
            ("replay_tokens", self.replay_tokens, default.replay_tokens),
        ];
        let of_keeping = of_keeping
            .map(|(option, own, default)| (option, count(own, default), is_kept, "a kl_weight"));
        for (option, value, has_use, expected) in of_others.into_iter().chain(of_keeping) {
            if let Some(value) = value.filter(|_| !has_use) {
                let beside = if expected == "a kl_weight" { "no kl_weight" } else { kind.name() };
                let found = format!("{value} beside {beside}");
                let refused = reft_core::Error::OptionValue { option, found, expected };
                return Err(Error::Core(refused));
            }
        }
        Ok(())
    }
}
