//! Scales of plots and where their ticks go.

/// A scale from values to places.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Axis {
    low: f64,
    high: f64,
    is_log: bool,
    /// Places of the two ends.
    ends: (f64, f64),
}

impl Axis {
    /// A linear axis over some values with a margin, ends on ticks.
    pub(crate) fn linear(values: impl IntoIterator<Item = f64>, ends: (f64, f64)) -> Self {
        let (low, high) = range(values);
        let margin = if high > low { 0.08 * (high - low) } else { 0.05 * high.abs().max(1e-6) };
        let step = step_of(high - low + 2.0 * margin);
        let bottom = ((low - margin) / step).floor() * step;
        let low = if low >= 0.0 { bottom.max(0.0) } else { bottom }; // no room below what cannot be
        let high = ((high + margin) / step).ceil() * step;
        Self { low, high, is_log: false, ends }
    }

    /// A linear axis between two values.
    pub(crate) fn between(low: f64, high: f64, ends: (f64, f64)) -> Self {
        Self { low, high, is_log: false, ends }
    }

    /// A logarithmic axis over positive values, ends a little past them.
    pub(crate) fn log(values: impl IntoIterator<Item = f64>, ends: (f64, f64)) -> Self {
        let (low, high) = range(values);
        let (low, high) = (low.max(1e-12).log10(), high.max(1e-12).log10());
        let margin = (0.12 * (high - low)).max(0.35);
        Self { low: low - margin, high: high + margin, is_log: true, ends }
    }

    /// The place of a value.
    pub(crate) fn place(&self, value: f64) -> f64 {
        let value = if self.is_log { value.max(1e-12).log10() } else { value };
        let share = (value - self.low) / (self.high - self.low);
        self.ends.0 + share * (self.ends.1 - self.ends.0)
    }

    /// The values that ticks stand at.
    pub(crate) fn ticks(&self) -> Vec<f64> {
        if self.is_log {
            let decades = self.low.ceil() as i32..=self.high.floor() as i32;
            return decades.map(|exponent| 10f64.powi(exponent)).collect();
        }
        let step = step_of(self.high - self.low);
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|i| i as f64 * step).collect()
    }

    /// Decimals that tell ticks apart, of values multiplied by `factor`.
    pub(crate) fn decimals(&self, factor: f64) -> usize {
        let step = step_of(self.high - self.low) * factor;
        (-(step + 1e-12).log10().floor()).clamp(0.0, 9.0) as usize
    }
}

fn range(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .into_iter()
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    if low > high { (0.0, 1.0) } else { (low, high) }
}

/// 1, 2 or 5 times a power of ten, so that a width has about five of them.
fn step_of(width: f64) -> f64 {
    let rough = width.max(1e-12) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let digit = [1.0, 2.0, 5.0, 10.0].into_iter().find(|digit| digit * power >= rough * 0.999);
    digit.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_ticks_are_round_and_cover_the_values() {
        let axis = Axis::linear([0.52, 0.93], (0.0, 100.0));
        let ticks = axis.ticks();
        assert!(ticks.len() >= 4 && ticks.len() <= 8, "{ticks:?}");
        assert!(axis.place(0.52) > 0.0 && axis.place(0.93) < 100.0);
        assert_eq!(axis.place(ticks[0]).round(), 0.0);
    }

    #[test]
    fn log_ticks_are_decades() {
        let axis = Axis::log([2_000.0, 3_000_000.0], (0.0, 10.0));
        assert_eq!(axis.ticks(), [1e3, 1e4, 1e5, 1e6]);
        let apart = axis.place(1e5) - axis.place(1e4);
        assert!((axis.place(1e4) - axis.place(1e3) - apart).abs() < 1e-9); // f64 rounding
    }

    #[test]
    fn one_value_has_an_axis_too() {
        for axis in [Axis::linear([0.5], (0.0, 1.0)), Axis::log([100.0], (0.0, 1.0))] {
            let value = if axis.is_log { 100.0 } else { 0.5 };
            assert!((0.05..=0.95).contains(&axis.place(value)), "{axis:?}");
        }
    }
}
