use reft_models::{AdapterStack, Model, PaddingSide, Row};
use reft_train::divergence_of_hidden_states;
use tch::{Kind, Tensor};

use crate::{Result, refuse};

/// How far adapters move the next tokens of some texts from the plain model's: `KL(plain ‖ adapted)`, the mean over all tokens, in nats.
pub struct KlPerToken<'a> {
    model: &'a dyn Model,
    /// Texts that are run together, with the plain model's hidden states, `[t, d]` each.
    batches: Vec<(Vec<Row>, Vec<Tensor>)>,
}

impl<'a> KlPerToken<'a> {
    /// Runs the plain model on the texts.
    ///
    /// # Errors
    /// If there is no text, or a text is empty; [`reft_models::Error::Encoder`] for a model that does not predict next tokens.
    pub fn of(model: &'a dyn Model, texts: &[Row]) -> Result<Self> {
        const BATCH: usize = 8;
        if texts.is_empty() {
            return refuse("texts", "0", "at least one text to measure on");
        }
        model.description().check_predicts("the divergence of next tokens")?;
        let run = |rows: &[Row]| {
            let plain =
                AdapterStack::EMPTY.hidden_states(model, rows.to_vec(), PaddingSide::Right)?;
            Ok((rows.to_vec(), plain))
        };
        Ok(Self { model, batches: texts.chunks(BATCH).map(run).collect::<Result<_>>()? })
    }

    /// The divergence under adapters.
    ///
    /// # Errors
    /// Errors of an adapter; adapters with virtual tokens.
    pub fn under(&self, adapters: &AdapterStack) -> Result<f64> {
        if adapters.virtual_tokens() > 0 {
            let found = adapters.method();
            return refuse(
                "adapter",
                &found,
                "one without virtual tokens, which have no next tokens to compare",
            );
        }
        let _guard = tch::no_grad_guard();
        let (mut sum, mut tokens) = (0.0, 0.0);
        for (rows, plain) in &self.batches {
            let adapted = adapters.hidden_states(self.model, rows.clone(), PaddingSide::Right)?;
            let (adapted, plain) = (Tensor::cat(&adapted, 0), Tensor::cat(plain, 0));
            let divergence = divergence_of_hidden_states(self.model, &adapted, &plain);
            sum += divergence.sum(Kind::Double).double_value(&[]);
            tokens += divergence.numel() as f64;
        }
        Ok(sum / tokens)
    }
}

/// The factor above 0 at which `measure`, which grows with the factor, reaches `value` to 1 %, with the value measured there. If it jumps
/// past `value`: the factor right before the jump, with the value measured there.
///
/// # Errors
/// If no factor from 10⁻⁹ to 10⁶ reaches `value`; errors of `measure`.
pub fn factor_reaching(
    what: &'static str,
    value: f64,
    mut measure: impl FnMut(f64) -> Result<f64>,
) -> Result<(f64, f64)> {
    // the last factors below and above `value`, each with its measured value
    let (mut below, mut above) = (None::<(f64, f64)>, None::<(f64, f64)>);
    let mut factor = 1.0;
    for _ in 0..48 {
        let found = measure(factor)?;
        if (found / value - 1.0).abs() < 0.01 {
            return Ok((factor, found));
        }
        if found < value {
            below = Some((factor, found));
        } else {
            above = Some((factor, found)); // NaN counts as above: the text has collapsed
        }
        factor = match (below, above) {
            (Some((low, at_low)), Some((high, _))) if high / low < 1.0001 => {
                return Ok((low, at_low));
            }
            (Some((low, at_low)), Some((high, at_high))) => {
                // linear interpolation of the logarithms, kept away from both ends
                let slope = (at_high / at_low).ln() / (high / low).ln();
                let guess = low * ((value / at_low).ln() / slope).exp();
                let (least, most) = ((high / low).powf(0.1), (high / low).powf(0.9));
                if guess.is_finite() {
                    guess.clamp(low * least, low * most)
                } else {
                    (low * high).sqrt()
                }
            }
            // a divergence grows with the square of the factor
            (Some((low, at_low)), None) => low * (value / at_low).sqrt().clamp(1.2, 8.0),
            (None, Some((high, at_high))) => {
                let ratio = (value / at_high).sqrt();
                high * if ratio.is_finite() { ratio.clamp(0.125, 0.8) } else { 0.125 }
            }
            (None, None) => break,
        };
        if !(1e-9..1e6).contains(&factor) {
            break;
        }
    }
    refuse(what, format!("not {value} at any strength tried"), "a value that can be reached")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_is_found_wherever_it_is() -> Result<()> {
        for scale in [1e-6, 0.3, 1.0, 4e4] {
            let mut tries = 0;
            let (factor, found) = factor_reaching("kl", 1.0, |x| {
                tries += 1;
                let x = x * scale;
                Ok(2.0 * x * x / (1.0 + 0.1 * x * x))
            })?;
            // 2 x² = 1 + 0.1 x²
            let expected = (1.0f64 / 1.9).sqrt() / scale;
            assert!((factor / expected - 1.0).abs() < 0.02, "{scale}: {factor} {expected}");
            assert!((found - 1.0).abs() < 0.011 && tries < 20, "{scale}: {found}, {tries} tries");
        }
        assert!(factor_reaching("kl", 1.0, |x| Ok(x / (1.0 + x) * 0.5)).is_err());
        let jumping = |x: f64| Ok(if x < 3.0 { 0.2 } else { 5.0 });
        let (factor, found) = factor_reaching("kl", 1.0, jumping)?;
        assert!((2.999..3.0).contains(&factor) && found == 0.2, "{factor} {found}");
        Ok(())
    }
}
