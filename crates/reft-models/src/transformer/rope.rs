use std::f64::consts::{PI, TAU};

use tch::{Device, Kind, Tensor};

use crate::weights::quick_rows::rotated;
use crate::{RopeOptions, RopeScaling};

/// Rotary position embedding (Su et al. 2021, arXiv:2104.09864), halves rotated as Hugging Face does.
///
/// Of the `n` rotated coordinates, the pair `i < n/2` and `i + n/2` is rotated by the angle `position · f_i`, with `f_i = θ^(−2i/n)`,
/// scaled by [`RopeScaling`].
#[derive(Debug)]
pub(crate) struct Rope {
    options: RopeOptions,
    attention_factor: f64, // of cosines and sines
    frequencies: Tensor,   // [n / 2] f32, of rows within the original context
}

/// Cosines and sines of one pass, broadcastable to `[b, n_h, t, n]`.
#[derive(Debug)]
pub(crate) struct Angles {
    cos: Tensor, // [1 or b, 1, t, n]
    sin: Tensor, // the first half negated
}

impl Rope {
    pub(crate) fn new(options: RopeOptions, device: Device) -> Self {
        let frequencies = Tensor::from_slice(&options.frequencies(0)).to_device(device);
        let attention_factor = match options.scaling {
            RopeScaling::Yarn { attention_factor, .. }
            | RopeScaling::LongRope { attention_factor, .. } => attention_factor,
            _ => 1.0,
        };
        Self { options, attention_factor, frequencies }
    }

    /// Angles of `position_ids` `[b, t]`, in the kind of the model. `lengths` are the present numbers of tokens of the rows.
    pub(crate) fn angles(
        &self,
        position_ids: &Tensor,
        lengths: impl Fn() -> Vec<usize>,
        kind: Kind,
    ) -> Angles {
        let positions = position_ids.to_kind(Kind::Float).unsqueeze(-1); // [b, t, 1]
        let turned = if self.options.scaling.depends_on_length() {
            let of_row = |length: usize| {
                let frequencies = Tensor::from_slice(&self.options.frequencies(length));
                frequencies.unsqueeze(0) // [1, n/2]
            };
            let rows: Vec<Tensor> = lengths().into_iter().map(of_row).collect();
            positions * Tensor::stack(&rows, 0).to_device(position_ids.device())
        } else {
            positions * &self.frequencies // [b, t, n/2]
        };
        let (mut cos, mut sin) = (turned.cos(), turned.sin());
        if self.attention_factor != 1.0 {
            (cos, sin) = (cos * self.attention_factor, sin * self.attention_factor);
        }
        let both = |first: &Tensor, second: &Tensor| {
            Tensor::cat(&[first, second], -1).unsqueeze(1).to_kind(kind) // [b, 1, t, n]
        };
        Angles { cos: both(&cos, &cos), sin: both(&sin.neg(), &sin) }
    }
}

impl Angles {
    /// Rotates queries or keys `[b, n_h, t, d_h]`, the first `n` coordinates of each.
    pub(crate) fn rotate(&self, x: &Tensor) -> Tensor {
        let (n, d_h) = (self.cos.size()[3], x.size()[3]);
        if n < d_h {
            let turned = self.rotate(&x.narrow(3, 0, n));
            return Tensor::cat(&[turned, x.narrow(3, n, d_h - n)], 3);
        }
        rotated(x, &self.cos, &self.sin).unwrap_or_else(|| {
            let exchanged = x.roll([n / 2], [-1]);
            (x * &self.cos).g_add_(&(exchanged * &self.sin))
        })
    }
}

impl RopeOptions {
    /// The frequencies in a row of `length` tokens. Exponents and powers are rounded to f32, as in the reference.
    fn frequencies(&self, length: usize) -> Vec<f32> {
        let n = self.rotated;
        let exponent = |i: i64| (2 * i) as f32 / n as f32;
        let powers = |theta: f32| (0..n / 2).map(move |i| theta.powf(exponent(i)));
        let plain = powers(self.theta as f32).map(|power| 1.0 / power);
        match &self.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f / *factor as f32).collect(),
            RopeScaling::Llama3 { .. } => plain.map(|f| self.scaling.llama3(f)).collect(),
            RopeScaling::Dynamic { factor, original_max_position_embeddings: original } => {
                if length as f64 <= *original {
                    return plain.collect();
                }
                let (factor, original) = (*factor as f32, *original as f32);
                let stretch = factor * length as f32 / original - (factor - 1.0);
                let theta = self.theta as f32 * stretch.powf(n as f32 / (n - 2) as f32);
                powers(theta).map(|power| 1.0 / power).collect()
            }
            RopeScaling::Yarn { factor, .. } => {
                let kept = self.kept_by_yarn();
                let both = powers(self.theta as f32).zip(kept).map(|(power, kept)| {
                    1.0 / (*factor as f32 * power) * (1.0 - kept) + 1.0 / power * kept
                });
                both.collect()
            }
            RopeScaling::LongRope {
                short_factor,
                long_factor,
                original_max_position_embeddings: original,
                ..
            } => {
                let is_long = length as f64 > *original;
                let factors = if is_long { long_factor } else { short_factor };
                let powers = powers(self.theta as f32).zip(factors);
                powers.map(|(power, factor)| 1.0 / (*factor as f32 * power)).collect()
            }
        }
    }

    /// The share of each frequency that YaRN keeps, from 1 (unchanged) to 0 (divided by the factor).
    fn kept_by_yarn(&self) -> Vec<f32> {
        let RopeScaling::Yarn {
            beta_fast,
            beta_slow,
            truncate,
            original_max_position_embeddings: original,
            ..
        } = self.scaling
        else {
            return Vec::new();
        };
        let n = self.rotated as f64;
        // the coordinate that makes this number of turns in the original context
        let of_turns = |turns: f64| n * (original / (turns * TAU)).ln() / (2.0 * self.theta.ln());
        let (low, high) = (of_turns(beta_fast), of_turns(beta_slow));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, mut high) = (low.max(0.0), high.min(n - 1.0));
        if low == high {
            high += 0.001;
        }
        let (low, width) = (low as f32, (high - low) as f32);
        let kept = |i: i64| 1.0 - ((i as f32 - low) / width).clamp(0.0, 1.0);
        (0..self.rotated / 2).map(kept).collect()
    }
}

impl RopeScaling {
    /// A frequency as Llama 3.1 stretches it.
    fn llama3(&self, frequency: f32) -> f32 {
        let Self::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original,
        } = *self
        else {
            return frequency;
        };
        let f = f64::from(frequency);
        let wavelength = 2.0 * PI / f;
        let share =
            (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
        let share = share.clamp(0.0, 1.0); // 1: kept, 0: stretched in full
        ((1.0 - share) * f / factor + share * f) as f32
    }
}
