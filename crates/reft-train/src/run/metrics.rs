use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A row of `metrics.jsonl` for each optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepStats {
    /// The step, counted from 1.
    pub step: usize,
    /// Epochs done after it, with a fraction.
    pub epoch: f64,
    /// The objective's loss before the step's update; of next tokens the mean of `−log p(target)` over the step's target tokens.
    pub loss: f64,
    /// The terms that the loss is the sum of, by name, if it has several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub terms: BTreeMap<String, f64>,
    /// Learning rate of the update.
    pub lr: f64,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model, padding not among them.
    pub tokens: usize,
    /// Tokens that count in the loss.
    pub target_tokens: i64,
    /// Wall time of the step.
    pub seconds: f64,
}

/// A row of `metrics.jsonl` for each validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ValidationStats {
    /// Steps taken before it; 0: the adapter as it starts.
    pub step: usize,
    /// The objective's loss on the examples held out.
    pub validation_loss: f64,
    /// Number of their target tokens.
    pub target_tokens: i64,
    /// Wall time of the validation.
    pub seconds: f64,
}
