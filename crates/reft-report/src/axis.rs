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
        let least = if low >= 0.0 { (low - margin).max(0.0) } else { low - margin }; // values that are never negative get no room below 0
        let step = step_of(high + margin - least);
        let low = (least / step).floor() * step;
        let high = ((high + margin) / step).ceil() * step;
        Self { low, high, is_log: false, ends }
    }

    /// A linear axis between two values.
    pub(crate) fn between(low: f64, high: f64, ends: (f64, f64)) -> Self {
        Self { low, high, is_log: false, ends }
    }

    /// A logarithmic axis over positive values, ends a little past them: by `margin`, in decades, at least.
    pub(crate) fn log(
        values: impl IntoIterator<Item = f64>,
        margin: f64,
        ends: (f64, f64),
    ) -> Self {
        let (low, high) = range(values);
        let (low, high) = (low.max(1e-12).log10(), high.max(1e-12).log10());
        let margin = (MARGIN_OF_LOG * (high - low)).max(margin);
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
            return self.ticks_of_log();
        }
        let step = step_of(self.high - self.low);
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|i| i as f64 * step).collect()
    }

    /// Powers of ten, and if there are few of them, other round numbers between them.
    fn ticks_of_log(&self) -> Vec<f64> {
        let (first, last) = (self.low.floor() as i32, self.high.floor() as i32);
        let ticks = |digits: &[f64]| -> Vec<f64> {
            let all = (first..=last).flat_map(|exponent| {
                // negative powers by division: 1 / 10 is the f64 nearest to 0.1, which a product of rounded powers need not be
                let power = 10f64.powi(exponent.abs());
                digits.iter().map(
                    move |digit| {
                        if exponent < 0 { digit / power } else { digit * power }
                    },
                )
            });
            all.filter(|tick| (self.low..=self.high).contains(&tick.log10())).collect()
        };
        const DIGITS: [&[f64]; 3] =
            [&[1.0], &[1.0, 2.0, 5.0], &[1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]];
        let enough = DIGITS.into_iter().map(ticks).find(|ticks| ticks.len() >= 3);
        enough.unwrap_or_else(|| {
            let (low, high) = (10f64.powf(self.low), 10f64.powf(self.high));
            Self { low, high, is_log: false, ..*self }.ticks()
        })
    }

    /// The decimals that distinguish a tick from its neighbours, for values multiplied by `factor`.
    pub(crate) fn decimals(&self, tick: f64, factor: f64) -> usize {
        if self.is_log {
            let text = format!("{:.9}", tick * factor);
            let digits = text.trim_end_matches('0');
            return digits.split_once('.').map_or(0, |(_, decimals)| decimals.len());
        }
        let step = step_of(self.high - self.low) * factor;
        (-(step + 1e-12).log10().floor()).clamp(0.0, 9.0) as usize
    }
}

/// The room past the values at each end of a logarithmic axis, as a share of their span.
const MARGIN_OF_LOG: f64 = 0.12;

fn range(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .into_iter()
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    if low > high { (0.0, 1.0) } else { (low, high) }
}

/// The distance of ticks: 1, 2 or 5 times a power of ten, the nearest to a fifth of `width`.
fn step_of(width: f64) -> f64 {
    let rough = width.max(1e-12) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let digit = match rough / power {
        ..1.414 => 1.0, // √(1 · 2), the geometric mean of 1 and 2, and so on
        ..3.162 => 2.0,
        ..7.071 => 5.0,
        _ => 10.0,
    };
    digit * power
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
        let shares = Axis::linear([0.04, 0.99], (0.0, 100.0));
        assert_eq!(shares.ticks().len(), 7); // 0.0 to 1.2
        assert!(shares.place(0.99) > 80.0, "{shares:?}");
    }

    #[test]
    fn log_ticks_are_decades() {
        let axis = Axis::log([2_000.0, 3_000_000.0], 0.35, (0.0, 10.0));
        assert_eq!(axis.ticks(), [1e3, 1e4, 1e5, 1e6]);
        let apart = axis.place(1e5) - axis.place(1e4);
        assert!((axis.place(1e4) - axis.place(1e3) - apart).abs() < 1e-9); // f64 rounding
    }

    #[test]
    fn log_ticks_are_enough_to_read_a_narrow_range_by() {
        for (values, expected) in [
            ([0.03, 2.0], &[0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0][..]),
            ([0.9, 2.2], &[0.9, 1.0, 1.5, 2.0]),
            ([2.31, 2.34], &[2.25, 2.3, 2.35, 2.4, 2.45]),
        ] {
            let axis = Axis::log(values, 0.02, (0.0, 100.0));
            let ticks = axis.ticks();
            let is_same = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12; // f64 rounding
            let same = ticks.len() == expected.len() && ticks.iter().zip(expected).all(is_same);
            assert!(same, "{values:?}: {ticks:?}");
        }
        let axis = Axis::log([0.03, 2.0], 0.02, (0.0, 100.0));
        let decimals = axis.ticks().into_iter().map(|tick| axis.decimals(tick, 1.0));
        assert_eq!(decimals.collect::<Vec<_>>(), [2, 2, 1, 1, 1, 0, 0]);
    }

    #[test]
    fn one_value_has_an_axis_too() {
        for axis in [Axis::linear([0.5], (0.0, 1.0)), Axis::log([100.0], 0.35, (0.0, 1.0))] {
            let value = if axis.is_log { 100.0 } else { 0.5 };
            assert!((0.05..=0.95).contains(&axis.place(value)), "{axis:?}");
        }
    }
}
