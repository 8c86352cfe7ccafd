use std::collections::BTreeMap;
use std::sync::LazyLock;

use reft_core::{DeclaredOptions, LARGEST_COUNT, declare_options};

use crate::objectives::reps::Factors;
use crate::{Error, NEXT_TOKEN, OBJECTIVES, ObjectiveDeclaration, Result};

/// The reference run of preferences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferenceRun {
    /// The plain model's.
    Base,
    /// The run of the adapter that the training starts from.
    Start,
}

reft_core::names!(ReferenceRun, "reference", reft_core::Error, { Base => "base", Start => "start" });

declare_options! {
    /// The options of objectives.
    pub struct ObjectiveOptions {
        /// Objective
        objective: &'static ObjectiveDeclaration = &NEXT_TOKEN, Text("NAME") in "Objective";
        /// Weight of a preference [default: 0.1; simpo: 2]; reps: weight of the plain model's log-odds against the preference [default: 1]
        #[serde(skip_serializing_if = "Option::is_none")]
        beta: Option<f64> = None, Number("X") in "Objective" if |x: f64| x.is_finite() && x > 0.0, "a number above 0";
        /// dpo: share of pairs assumed to be labelled wrongly, 0 to below 0.5 [default: 0]
        #[serde(skip_serializing_if = "Option::is_none")]
        label_smoothing: Option<f64> = None, Number("X") in "Objective" if |x: f64| (0.0..0.5).contains(&x), "a share from 0 to below 0.5";
        /// simpo: margin to be reached [default: 1]
        #[serde(skip_serializing_if = "Option::is_none")]
        simpo_gamma: Option<f64> = None, Number("X") in "Objective" if |x: f64| x.is_finite() && x >= 0.0, "0 or a number above 0";
        /// dpo, ipo: base or start [default: base; start with --init-adapter]
        #[serde(skip_serializing_if = "Option::is_none")]
        reference: Option<ReferenceRun> = None, Text("NAME") in "Objective";
        /// reps: each sequence draws one of these factors, such as 2,4,6; a bias is trained too
        #[serde(skip_serializing_if = "Option::is_none")]
        steering_factors: Option<Factors> = None, Text("LIST") in "Objective";
        /// reft-r1: number of a text's largest latents that steer the text [default: 8]
        #[serde(skip_serializing_if = "Option::is_none")]
        top_k: Option<usize> = None, Count("N") in "Objective" if |n: usize| (1..=LARGEST_COUNT).contains(&n), "a whole number of at least 1 and at most 1,000,000,000";
        /// reft-r1: weight of the latents that should be 0, at the end of the run [default: 0.03]
        #[serde(skip_serializing_if = "Option::is_none")]
        latent_weight: Option<f64> = None, Number("X") in "Objective" if |x: f64| x.is_finite() && x >= 0.0, "0 or a number above 0";
        /// Weight of the divergence from the frozen model, in nats per token
        #[serde(skip_serializing_if = "Option::is_none")]
        kl_weight: Option<f64> = None, Number("X") in "Objective" if |x: f64| x.is_finite() && x > 0.0, "a number above 0";
        /// Number of likeliest tokens that the divergence of kl_weight tells apart; 0 = all tokens
        kl_top_k: usize = 64, Count("N") in "Objective" if |n: usize| n <= LARGEST_COUNT, "a whole number of at most 1,000,000,000";
        /// Rows of the replay file in each step
        replay_batch_size: usize = 4, Count("N") in "Objective"
            if |n: usize| (1..=LARGEST_COUNT).contains(&n), "a whole number of at least 1 and at most 1,000,000,000";
        /// Longest reply generated for a replay row without a reply, in tokens
        replay_tokens: usize = 32, Count("N") in "Objective"
            if |n: usize| (1..=LARGEST_COUNT).contains(&n), "a whole number of at least 1 and at most 1,000,000,000";
    }
}

impl ObjectiveOptions {
    /// Refuses impossible values, and values that the objective has no use for.
    ///
    /// # Errors
    /// [`reft_core::Error::OptionValue`] with the option's name.
    pub fn check(&self) -> Result<()> {
        self.check_each()?;
        self.check_own()?;
        let default = Self::default();
        let of_keeping = [
            ("kl_top_k", self.kl_top_k, default.kl_top_k),
            ("replay_batch_size", self.replay_batch_size, default.replay_batch_size),
            ("replay_tokens", self.replay_tokens, default.replay_tokens),
        ];
        for (option, own, default) in of_keeping {
            if own != default && self.kl_weight.is_none() {
                let (found, expected) = (format!("{own} beside no kl_weight"), "a kl_weight");
                let refused = reft_core::Error::OptionValue { option, found, expected };
                return Err(Error::Core(refused));
            }
        }
        Ok(())
    }

    /// Refuses an option of other objectives.
    fn check_own(&self) -> Result<()> {
        let given = serde_json::to_value(self).expect("invariant: options are a table");
        for (option, having) in &*HAVING {
            let value = &given[*option];
            if !value.is_null() && !self.objective.options.contains(option) {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let found = format!("{value} beside {}", self.objective);
                let refused = reft_core::Error::OptionValue { option, found, expected: having };
                return Err(Error::Core(refused));
            }
        }
        Ok(())
    }
}

/// The options of some objectives only, and the names of these: "objective dpo or ipo".
static HAVING: LazyLock<BTreeMap<&'static str, String>> = LazyLock::new(|| {
    let mut having: BTreeMap<&str, String> = BTreeMap::new();
    for objective in OBJECTIVES {
        for option in objective.options {
            let names = having.entry(option).or_insert_with(|| "objective".to_owned());
            *names += if names == "objective" { " " } else { " or " };
            *names += objective.name;
        }
    }
    having
});
