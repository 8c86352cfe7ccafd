use crate::Result;
use crate::objectives::metrics::measures::{
    accuracy, f1, matthews, mean_squared_error, pearson, spearman,
};

/// A number that says how well a model does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Share of right answers.
    Accuracy,
    /// Mean of −log p(target).
    Loss,
    /// Share of tokens that come back.
    Recall,
    /// Harmonic mean of precision and recall.
    F1,
    /// Matthews' correlation of classes.
    Matthews,
    /// Pearson's correlation of numbers.
    Pearson,
    /// Spearman's correlation of numbers.
    Spearman,
    /// Mean squared difference of numbers.
    SquaredError,
}

reft_core::names!(Metric, "metric", reft_core::Error, {
    Accuracy => "accuracy", Loss => "loss", Recall => "recall", F1 => "f1", Matthews => "matthews",
    Pearson => "pearson", Spearman => "spearman", SquaredError => "mean_squared_error",
});

impl Metric {
    /// Whether more is better.
    pub fn higher_is_better(self) -> bool {
        !matches!(self, Self::Loss | Self::SquaredError)
    }

    /// Whether it is a share, which people read in percent.
    pub fn is_share(self) -> bool {
        matches!(self, Self::Accuracy | Self::Recall | Self::F1)
    }

    /// Its name in tables.
    pub fn title(self) -> &'static str {
        match self {
            Self::F1 => "F1",
            Self::Matthews => "Matthews",
            Self::Pearson => "Pearson",
            Self::Spearman => "Spearman",
            Self::SquaredError => "squared error",
            Self::Accuracy | Self::Loss | Self::Recall => self.name(),
        }
    }
    /// The metric of predictions and labels, `[told, right]` for each example; classes by their indices, `classes` in all. `None`
    /// of loss and recall, which are not computed from predictions.
    pub fn of_told(self, pairs: &[[f64; 2]], classes: usize) -> Option<f64> {
        let numbers = |i: usize| -> Vec<f64> { pairs.iter().map(|pair| pair[i]).collect() };
        let indices =
            |i: usize| -> Vec<usize> { pairs.iter().map(|pair| pair[i] as usize).collect() };
        Some(match self {
            Self::Accuracy => accuracy(&indices(0), &indices(1)),
            Self::F1 => f1(&indices(0), &indices(1), classes),
            Self::Matthews => matthews(&indices(0), &indices(1), classes),
            Self::Pearson => pearson(&numbers(0), &numbers(1)),
            Self::Spearman => spearman(&numbers(0), &numbers(1)),
            Self::SquaredError => mean_squared_error(&numbers(0), &numbers(1)),
            Self::Loss | Self::Recall => return None,
        })
    }

    /// Checks that an objective with these metrics has the metric that chooses the best adapter.
    ///
    /// # Errors
    /// [`reft_core::Error::OptionValue`] if it has not.
    pub fn check_best(best: Option<Self>, metrics: &[Self], objective: &str) -> Result<()> {
        let Some(metric) = best.filter(|metric| *metric != Self::Loss && !metrics.contains(metric))
        else {
            return Ok(());
        };
        let found = format!("{metric} beside objective {objective}");
        let expected = "loss; of pairs and rewards accuracy; of classes accuracy, f1 or matthews; of numbers pearson, spearman or mean_squared_error";
        Err(reft_core::Error::OptionValue { option: "best", found, expected }.into())
    }

    /// Whether a value of it is better than another one.
    pub fn is_better(self, value: f64, than: f64) -> bool {
        if self.higher_is_better() { value > than } else { value < than }
    }
}
