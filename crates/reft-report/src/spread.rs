use serde::{Deserialize, Serialize};

/// Values of several seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation (of a sample: divided by n − 1); `None` for a single value.
    pub sd: Option<f64>,
    /// The values, in the order of the seeds.
    pub values: Vec<f64>,
}

impl Spread {
    /// The spread of some values; `None` without any.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        if values.is_empty() {
            return None;
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let sd = (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt());
        Some(Self { mean, sd, values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deviation_is_that_of_a_sample() {
        let spread = Spread::of([2.0, 4.0, 4.0, 6.0]).expect("values");
        assert_eq!(spread.mean, 4.0);
        let expected = (8.0f64 / 3.0).sqrt();
        assert!((spread.sd.expect("several") - expected).abs() < 1e-15); // f64 rounding
        assert_eq!(Spread::of([3.0]).and_then(|spread| spread.sd), None);
        assert_eq!(Spread::of([]), None);
    }
}
