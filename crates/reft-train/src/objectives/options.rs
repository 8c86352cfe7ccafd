use reft_core::{DeclaredOptions, LARGEST_COUNT, declare_options};

use crate::Result;

declare_options! {
    /// The options of what is learned.
    pub struct ObjectiveOptions {
        /// Keep the next tokens of the frozen model: this many times the divergence from it, in nats per token, is added to the loss; of
        /// the labelled tokens, or with replay of its rows alone
        #[serde(skip_serializing_if = "Option::is_none")]
        kl_weight: Option<f64> = None, Number("X") in "Objective" if |x: f64| x.is_finite() && x > 0.0, "a number above 0";
        /// Tokens of which the divergence is told, the frozen model's likeliest, and all others as one; 0 = every token of the vocabulary
        kl_top_k: usize = 64, Count("N") in "Objective" if |n: usize| n <= LARGEST_COUNT, "a whole number of at most 1,000,000,000";
        /// Rows of the replay file in each step
        replay_batch_size: usize = 4, Count("N") in "Objective"
            if |n: usize| (1..=LARGEST_COUNT).contains(&n), "a whole number of at least 1 and at most 1,000,000,000";
        /// Length of the frozen model's own reply, in tokens, for rows of the replay file that have none
        replay_tokens: usize = 32, Count("N") in "Objective"
            if |n: usize| (1..=LARGEST_COUNT).contains(&n), "a whole number of at least 1 and at most 1,000,000,000";
    }
}

impl ObjectiveOptions {
    /// Refuses values that cannot be.
    ///
    /// # Errors
    /// [`reft_core::Error::OptionValue`] with the option's name.
    pub fn check(&self) -> Result<()> {
        Ok(self.check_each()?)
    }
}
