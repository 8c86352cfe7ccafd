use reft_core::{AlignmentMethod, LARGEST_COUNT, names};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, refuse};

/// The start of a subspace before it is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// At the directions along which the mean hidden state follows the variable.
    #[default]
    Means,
    /// At random directions.
    Random,
}

names!(Start, "start", Error, { Means => "means", Random => "random" });

/// The kind of swap at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum DasAlignment {
    /// A trained subspace of given dimensions.
    #[default]
    Das,
    /// The first coordinates of a trained rotation. Their number is trained too.
    Boundless,
    /// Some coordinates of a trained rotation. The selection is trained too.
    SigmoidMask,
    /// A given number of neurons, chosen because they follow the variable most. Nothing is trained.
    Neurons,
    /// The whole hidden state: the plain interchange. Nothing is trained.
    Whole,
}

names!(DasAlignment, "alignment", Error, {
    Das => "das",
    Boundless => "boundless",
    SigmoidMask => "sigmoid-mask",
    Neurons => "neurons",
    Whole => "whole",
});

impl DasAlignment {
    /// The method that the trainer learns; `None` if nothing is trained.
    pub(crate) fn learned(self) -> Option<AlignmentMethod> {
        match self {
            Self::Das => Some(AlignmentMethod::Das),
            Self::Boundless => Some(AlignmentMethod::Boundless),
            Self::SigmoidMask => Some(AlignmentMethod::SigmoidMask),
            Self::Neurons | Self::Whole => None,
        }
    }

    /// Whether the number of dimensions is an option; otherwise it is the size of the place, or learned.
    pub fn takes_rank(self) -> bool {
        matches!(self, Self::Das | Self::Neurons)
    }

    /// The name of a cell of this kind.
    pub(crate) fn cell_name(self, rank: i64) -> String {
        match self {
            Self::Das => format!("rank-{rank}"),
            Self::Neurons => format!("neurons-{rank}"),
            Self::Boundless | Self::SigmoidMask | Self::Whole => self.name().to_owned(),
        }
    }
}

/// The places that are searched, and how.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DasOptions {
    /// Components of blocks, and heads (`head_3`).
    pub components: Vec<String>,
    /// Layers.
    pub layers: Vec<usize>,
    /// Tokens, by name.
    pub positions: Vec<String>,
    /// The kind of swap.
    pub alignment: DasAlignment,
    /// Numbers of dimensions. For an alignment that takes none: the number of the place's coordinates, which is filled in.
    pub ranks: Vec<i64>,
    /// Counterfactuals to train on.
    pub train_pairs: usize,
    /// Counterfactuals held out.
    pub test_pairs: usize,
    /// Optimizer steps for each subspace.
    pub steps: usize,
    /// Counterfactuals of a step.
    pub batch_size: usize,
    /// Learning rate of the first step; it falls on a line.
    pub lr: f64,
    /// Where a subspace begins.
    pub start: Start,
    /// Whether the same search is made in a model that was never trained.
    pub untrained_model: bool,
    /// Seed of pairs, starts and order.
    pub seed: u64,
}

impl DasOptions {
    /// Refuses invalid numbers, empty lists, and lists with duplicates.
    pub(crate) fn check(&self, layers: usize) -> Result<()> {
        for (option, number) in [
            ("train pairs", self.train_pairs),
            ("test pairs", self.test_pairs),
            ("steps", self.steps),
            ("batch size", self.batch_size),
        ] {
            if !(1..=LARGEST_COUNT).contains(&number) {
                let expected = format!("at least 1 and at most {LARGEST_COUNT}");
                return refuse(option, number.to_string(), expected);
            }
        }
        if let Some(layer) = self.layers.iter().find(|&&layer| layer >= layers) {
            return refuse("layer", layer.to_string(), format!("0 to {}", layers - 1));
        }
        for (option, values) in [
            ("position", self.positions.clone()),
            ("site", self.components.clone()),
            ("rank", self.ranks.iter().map(i64::to_string).collect()),
            ("layer", self.layers.iter().map(usize::to_string).collect()),
        ] {
            if values.is_empty() {
                return refuse(option, "empty", "at least one");
            }
            let twice = values.iter().enumerate().find(|(i, value)| values[..*i].contains(value));
            if let Some((_, value)) = twice {
                return refuse(option, format!("{value} twice"), "each once");
            }
        }
        Ok(())
    }
}

/// The defaults of a search: the table `[search]` of a task.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SearchDefaults {
    /// Dimensions.
    pub rank: Option<Vec<i64>>,
    /// Counterfactuals to train on.
    pub train_pairs: Option<usize>,
    /// Counterfactuals held out.
    pub test_pairs: Option<usize>,
    /// Optimizer steps.
    pub steps: Option<usize>,
    /// Counterfactuals of a step.
    pub batch_size: Option<usize>,
    /// Learning rate.
    pub lr: Option<f64>,
}
