//! Numbers as people read them.

use serde::{Deserialize, Serialize};

/// Mean ± standard deviation with a number of decimals.
pub fn spread(spread: &Spread, decimals: usize) -> String {
    match spread.sd {
        Some(sd) => format!("{:.decimals$} ± {sd:.decimals$}", spread.mean),
        None => format!("{:.decimals$}", spread.mean),
    }
}

/// A number of things, whose name gets an `s` unless there is one of them: `1 step`, `12,000 steps`.
pub fn counted(n: usize, name: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {name}{plural}", grouped(n as i64))
}

/// A whole number with commas: `1,235,814,400`.
pub fn grouped(n: i64) -> String {
    let digits = n.unsigned_abs().to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    let sign = if n < 0 { "-" } else { "" };
    sign.to_owned() + &groups.collect::<Vec<_>>().join(",")
}

/// A large number in short: `1.2 M`.
pub fn short(n: f64) -> String {
    let (value, unit) = match n.abs() {
        x if x >= 1e9 => (n / 1e9, " G"),
        x if x >= 1e6 => (n / 1e6, " M"),
        x if x >= 1e3 => (n / 1e3, " k"),
        _ => (n, ""),
    };
    let text = if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") };
    format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
}

/// A size of files or memory.
pub fn bytes(n: u64) -> String {
    let text = short(n as f64);
    if text.contains(' ') { format!("{text}B") } else { format!("{text} B") }
}

/// A percentage with two significant digits.
pub fn percent(percent: f64) -> String {
    let digits = if percent > 0.0 { (1.0 - percent.log10().floor()).clamp(0.0, 12.0) } else { 0.0 };
    format!("{percent:.0$} %", digits as usize)
}

/// A share in percent in at most four characters, rounded as usual, but below 1 never up to 100.
pub fn short_share(value: f64) -> String {
    let percent = if value < 1.0 { (100.0 * value).min(99.9) } else { 100.0 * value };
    let text = format!("{percent:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

/// Seconds.
pub fn seconds(s: f64) -> String {
    match s {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{:.0} min {:02.0} s", (s / 60.0).floor(), (s % 60.0).floor()),
        s => format!("{:.0} h {:02.0} min", (s / 3600.0).floor(), (s % 3600.0 / 60.0).floor()),
    }
}

/// The number of steps that [`running_mean`] averages in a curve of `steps` steps.
pub fn running_mean_steps(steps: usize) -> usize {
    (steps / 25).max(1)
}

/// For each step the mean over the last [`running_mean_steps`] steps.
pub fn running_mean(values: &[f64]) -> Vec<f64> {
    let width = running_mean_steps(values.len());
    let mean = |i: usize| {
        let part = &values[(i + 1).saturating_sub(width)..=i];
        part.iter().sum::<f64>() / part.len() as f64
    };
    (0..values.len()).map(mean).collect()
}

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
    fn numbers_are_short_and_keep_what_means_something() {
        assert_eq!(short(276_720.0), "277 k");
        assert_eq!(short(12_345_678.0), "12.3 M");
        assert_eq!(short(40.0), "40");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1_500_000), "1.5 MB");
        assert_eq!(percent(0.0312), "0.031 %");
        assert_eq!(percent(100.0), "100 %");
        assert_eq!(seconds(185.0), "3 min 05 s");
        let two = Spread::of([0.9, 0.92]).expect("values");
        assert_eq!(spread(&two, 2), "0.91 ± 0.01");
    }

    #[test]
    fn what_is_not_whole_does_not_read_100() {
        assert_eq!(short_share(1.0), "100");
        assert_eq!(short_share(0.9999), "99.9");
        assert_eq!(short_share(0.3125), "31.2");
        assert_eq!(short_share(0.96875), "96.9");
        assert_eq!(short_share(0.29), "29");
        assert_eq!(short_share(0.0), "0");
    }

    #[test]
    fn a_running_mean_starts_with_what_there_is() {
        let losses: Vec<f64> = (0..50).map(f64::from).collect();
        assert_eq!(&running_mean(&losses)[..3], [0.0, 0.5, 1.5]);
        assert_eq!(running_mean(&[2.0, 4.0]), [2.0, 4.0]);
    }

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
