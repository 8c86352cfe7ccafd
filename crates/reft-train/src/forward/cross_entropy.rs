use reft_models::Model;
use tch::{Reduction, Tensor};

use crate::of_logits;

/// `−log p(label)` `[m]` of hidden states `[m, d]`.
pub fn cross_entropy(model: &dyn Model, h: &Tensor, labels: &Tensor) -> Tensor {
    of_logits(model, h, &[labels], &cross_entropy_of_logits)
}

fn cross_entropy_of_logits(logits: &Tensor, labels: &[Tensor]) -> Tensor {
    logits.cross_entropy_loss(&labels[0], None::<Tensor>, Reduction::None, -100, 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Result;
    use crate::forward::logits_in_chunks::in_chunks;
    use reft_models::Decoder;
    use tch::{Device, Kind};

    /// Logits a few at a time, all at once: loss and gradient are the same.
    #[test]
    fn chunks_of_logits_change_nothing() -> Result<()> {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/tiny_llama");
        let decoder = Decoder::open(model.as_ref(), Kind::Float, Device::Cpu)?;
        let d = decoder.description().hidden_size;
        let start = Tensor::arange(11 * d, (Kind::Float, Device::Cpu)).sin().view([11, d]);
        let labels = Tensor::from_slice(&[3i64, 9, 27, 81, 5, 25, 125, 7, 49, 2, 4]);
        let run = |rows| {
            let h = start.detach().set_requires_grad(true);
            let loss = in_chunks(&decoder, &h, &[&labels], rows, &cross_entropy_of_logits)
                .sum(Kind::Float);
            (&loss * 0.5).backward();
            (loss.double_value(&[]), h.grad())
        };
        let (loss, gradient) = run(11);
        assert!(gradient.abs().max().double_value(&[]) > 1e-2);
        for rows in [1, 3, 4] {
            let (chunked, same_gradient) = run(rows);
            assert!((loss - chunked).abs() < 1e-6 * loss, "{loss} {chunked}"); // f32
            let difference = (same_gradient - &gradient).abs().max().double_value(&[]);
            assert!(difference < 1e-6, "{rows} at a time: {difference:e}"); // f32, entries of about 0.1
            let _guard = tch::no_grad_guard();
            let without = in_chunks(&decoder, &start, &[&labels], rows, &cross_entropy_of_logits)
                .sum(Kind::Double);
            let without = without.double_value(&[]);
            assert!((loss - without).abs() < 1e-6 * loss);
        }
        Ok(())
    }
}
