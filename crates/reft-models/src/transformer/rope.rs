use std::f64::consts::PI;

use tch::{Device, Kind, Tensor};

use crate::{DecoderConfig, RopeScaling};

/// Rotary position embedding (Su et al. 2021, arXiv:2104.09864), halves rotated as Hugging Face does.
///
/// Coordinate `i < d_h/2` and `i + d_h/2` turn together by the angle `position · f_i`, with `f_i = θ^(−2i/d_h)`, stretched by
/// [`RopeScaling`].
#[derive(Debug)]
pub(crate) struct Rope {
    frequencies: Tensor, // [d_h / 2] f32
}

/// Cosines and sines of one pass, broadcastable to `[b, n, t, d_h]`.
#[derive(Debug)]
pub(crate) struct Angles {
    cos: Tensor, // [1 or b, 1, t, d_h]
    sin: Tensor, // the first half negated
}

impl Rope {
    pub(crate) fn new(config: &DecoderConfig, device: Device) -> Self {
        let half = config.head_dim / 2;
        let plain = (0..half).map(|i| {
            // f32 as the reference computes it: the exponent and the power are rounded
            let exponent = (2 * i) as f32 / config.head_dim as f32;
            1.0 / (config.rope_theta as f32).powf(exponent)
        });
        let frequencies: Vec<f32> = plain.map(|f| config.rope_scaling.stretch(f)).collect();
        Self { frequencies: Tensor::from_slice(&frequencies).to_device(device) }
    }

    /// Angles of `position_ids` `[b, t]` (or `[1, t]` if they are the same in every row), in the kind of the model.
    pub(crate) fn angles(&self, position_ids: &Tensor, kind: Kind) -> Angles {
        let positions = position_ids.to_kind(Kind::Float).unsqueeze(-1); // [b, t, 1]
        let turned = positions * &self.frequencies; // [b, t, d_h/2]
        let (cos, sin) = (turned.cos(), turned.sin());
        let both = |first: &Tensor, second: &Tensor| {
            Tensor::cat(&[first, second], -1).unsqueeze(1).to_kind(kind) // [b, 1, t, d_h]
        };
        Angles { cos: both(&cos, &cos), sin: both(&sin.neg(), &sin) }
    }
}

impl Angles {
    /// Rotates queries or keys `[b, n, t, d_h]`.
    pub(crate) fn rotate(&self, x: &Tensor) -> Tensor {
        let half = self.cos.size()[3] / 2;
        let exchanged = x.roll([half], [-1]);
        (x * &self.cos).g_add_(&(exchanged * &self.sin))
    }
}

impl RopeScaling {
    fn stretch(&self, frequency: f32) -> f32 {
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor as f32,
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original,
            } => {
                let f = f64::from(frequency);
                let wavelength = 2.0 * PI / f;
                let share = (original / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                let share = share.clamp(0.0, 1.0); // 1: kept, 0: stretched in full
                ((1.0 - share) * f / factor + share * f) as f32
            }
        }
    }
}
