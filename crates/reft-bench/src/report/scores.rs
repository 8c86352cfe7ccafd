use reft_report::{Spread, short_share};

use crate::tasks::Metric;

/// A score: shares in percent, losses as they are.
pub(super) fn score(metric: Metric, value: f64) -> String {
    match metric {
        Metric::Accuracy | Metric::Recall => format!("{:.1} %", 100.0 * value),
        Metric::Loss => format!("{value:.4}"),
    }
}

/// Mean ± standard deviation of scores.
pub(super) fn score_spread(metric: Metric, spread: &Spread) -> String {
    let Some(sd) = spread.sd else { return score(metric, spread.mean) };
    match metric {
        Metric::Accuracy | Metric::Recall => {
            format!("{:.1} ± {:.1} %", 100.0 * spread.mean, 100.0 * sd)
        }
        Metric::Loss => format!("{:.4} ± {sd:.4}", spread.mean),
    }
}

/// A score in at most four characters; a share that is not the whole never reads 100.
pub(super) fn short_score(metric: Metric, value: f64) -> String {
    match metric {
        Metric::Loss => format!("{value:.2}"),
        Metric::Accuracy | Metric::Recall => short_share(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_in_percent_and_losses_as_they_are() {
        let two = Spread::of([0.9, 0.92]).expect("values");
        assert_eq!(score_spread(Metric::Accuracy, &two), "91.0 ± 1.4 %");
        assert_eq!(short_score(Metric::Recall, 0.9999), "99.9");
        assert_eq!(short_score(Metric::Loss, 2.3456), "2.35");
    }
}
